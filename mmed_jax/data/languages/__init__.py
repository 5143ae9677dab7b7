"""Scripts of the seven languages, and which language a text is in."""
