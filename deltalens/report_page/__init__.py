"""One self-contained page of studies, trainings and runs: what was found, and the evidence for it.
No torch here.

`find_records` reads what lies in folders, `Section` is what the page shows of one record, and
`write_page` puts sections together.
"""

from deltalens.report_page.finding import Found, find_records
from deltalens.report_page.page import LARGEST, Page, check_page, write_page
from deltalens.report_page.section import Repeat

__all__ = ["LARGEST", "Found", "Page", "Repeat", "check_page", "find_records", "write_page"]
