"""In-training compressors, one file each; `plugins.compressors()` finds them by file name."""
