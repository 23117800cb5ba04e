"""The search for latents and cameras, and the records it leaves."""
