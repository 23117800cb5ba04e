"""A headless browser, for pictures of pages and for their tests."""
