"""What may vary: one module per method with `suggest(trial, profile)`, which returns the method's `Config`.

autocompress loads this folder by its path; its modules import only autocompress's public names.
"""
