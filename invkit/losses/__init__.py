"""Terms of objectives and of adversarial games that know nothing of the scene."""
