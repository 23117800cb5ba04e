"""Records measured and shown: viewpoints, protocols, reports, pages."""
