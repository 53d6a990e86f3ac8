"""SILC: image-text contrastive learning with local-to-global self-distillation from an EMA teacher (arXiv 2310.13355)."""
