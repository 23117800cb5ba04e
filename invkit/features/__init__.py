"""Frozen networks that measure pictures: Inception, VGG, AlexNet, LPIPS. Their weights are files a user provides."""
