"""The paper: from boxes to allowed classes to an uncertainty-aware loss."""
