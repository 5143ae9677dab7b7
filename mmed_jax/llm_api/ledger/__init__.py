"""The ledger: every request and answer that was paid for, its transactions, its balance."""
