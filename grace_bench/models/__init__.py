"""Base models: loading, training and finding layers."""
