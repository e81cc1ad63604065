"""One thread, and no hook outlives a test."""

from tests.support.clean_hooks import no_hook_stays, one_thread

__all__ = ["no_hook_stays", "one_thread"]
