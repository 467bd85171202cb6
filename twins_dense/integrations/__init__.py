"""Adapters of the backbone to the frameworks whose heads read its pyramid; each is imported on its own."""
