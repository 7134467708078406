"""Frozen backbones: from RGB arrays to pooled feature maps."""
