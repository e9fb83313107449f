"""Tasks of what people have in other frameworks, which are not imported before they are used."""
