"""Everything drawn: figures, pictures of clips and results, annotated videos, the report page."""
