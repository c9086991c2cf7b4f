"""One CUDA graph is recorded at a time in a process."""

from __future__ import annotations

import threading

# To begin a recording, and to warm one up, is to wait for the whole device; to unmap memory, too. CUDA
# refuses that while another thread records, and breaks that thread's recording.
CAPTURE = threading.RLock()
