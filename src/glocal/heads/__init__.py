"""What sits on a backbone. Knows a backbone's `feature_info`, never its name."""

from glocal.heads.pyramid import PyramidAdapter

__all__ = ["PyramidAdapter"]
