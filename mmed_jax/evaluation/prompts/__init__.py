"""Questions as prompts: few-shot examples, the order of options."""
