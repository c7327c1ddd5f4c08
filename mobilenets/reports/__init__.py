"""What is shown: figures, pages, the papers' tables, explanations."""
