"""What holds for the other methods' tests holds here."""

from tests.methods.conftest import _no_hook_stays, _one_thread

__all__ = ["_no_hook_stays", "_one_thread"]
