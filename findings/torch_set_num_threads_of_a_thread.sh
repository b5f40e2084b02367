#!/usr/bin/env bash
# PyTorch 2.13.0, Linux: a thread that calls torch.set_num_threads(1) as its first use of torch does not keep it, if another
# thread sets its own number afterwards.
#
# Expected: torch.get_num_threads() gives what the thread itself has set; or, if the number is one for all threads, that
# what one thread sets is seen by all.
# Seen: neither. A thread that has already asked for its number keeps what it sets, whatever others set later. A thread that
# sets the number without having asked takes, at its next use, what was last set anywhere. So a pool whose initializer
# sets 1, while the main thread sets its own number again, computes on all cores in every worker; no warning.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check numpy==2.2.6 torch==2.13.0
"$folder/venv/bin/python" - <<'PYTHON'
from threading import Barrier, Thread

import torch

torch.set_num_threads(4)
set_one, other_set, found = Barrier(3), Barrier(3), {}


def work(name, asks_first):
    if asks_first:
        torch.get_num_threads()
    torch.set_num_threads(1)
    set_one.wait()
    other_set.wait()
    found[name] = torch.get_num_threads()


threads = [Thread(target=work, args=case) for case in (("sets", False), ("asks, then sets", True))]
for thread in threads:
    thread.start()
set_one.wait()
torch.set_num_threads(4)
other_set.wait()
for thread in threads:
    thread.join()
print("torch", torch.__version__)
for name, number in sorted(found.items()):
    print(f"{name:16} 1, and has {number}")
assert found == {"sets": 4, "asks, then sets": 1}, found
print("as described above")
PYTHON
