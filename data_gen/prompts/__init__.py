"""The words of the methods: a TOML file per method, a section per language; `versions` pins what each version says."""
