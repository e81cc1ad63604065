"""The papers' tables: their data, and what a study folder's records make of them."""
