"""Everything that asks a paid endpoint: requests, rate limits, prices, the ledger of answers, batches."""
