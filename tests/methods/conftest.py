"""One thread, and no hook outlives a test."""

from tests.support.clean_hooks import _no_hook_stays, _one_thread

__all__ = ["_no_hook_stays", "_one_thread"]
