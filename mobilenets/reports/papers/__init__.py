"""The papers' tables: what is printed, what is counted here, and why they differ where they do. No torch."""
