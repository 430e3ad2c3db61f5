"""Every measurement, from tuned concepts to scored cases with intervals."""
