"""In-training compressors, a room each; `shared/` holds what several need."""
