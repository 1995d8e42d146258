"""Files of feature statistics: ours and every peer's."""
