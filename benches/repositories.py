"""What whole repositories cost: bytes of many levels, shared blocks, checkpoints, resuming, planning, two cores."""

import contextlib
import json
import os
import pathlib
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time

LEVELS = 28
MIB = 2**20


class Repositories:
    """The cases in one folder; `bench` runs commands, makes inputs and keeps the rows of the table."""

    def __init__(self, bench):
        self.bench, self.tools = bench, bench.tools

    def row(self, case, what, value, ratio="", must=""):
        self.bench.rows.append((case, what, value, "", ratio, must))

    def make(self, shape, count, name=None):
        folder = self.bench.folder / (name or shape)
        folder.mkdir()
        made = self.bench.run(self.tools["make-input"], shape, folder, count, capture=True)
        return folder, [pathlib.Path(line) for line in made.splitlines()]

    def gc(self, folder, *options):
        return [self.tools["vhd-tool"], "gc", folder, "--quiet", *options]

    def written(self, *command, folder):
        moved = self.bench.traced(list(command), folder)
        return moved["written"] if moved else None

    def levels(self):
        """All at once, and link by link in a random order, as a collector does that merges one at a time."""
        case = f"{LEVELS} hidden levels of 8 MiB"
        folder, paths = self.make("hidden-levels", LEVELS)
        copy = folder.with_suffix(".copy")
        shutil.copytree(folder, copy)
        plan = self.plan(paths[-2], paths[0])
        # What a merge must write: the newest version of each sector, and the tables that show it.
        optimum = plan["bytes_written"]
        once = self.written(*self.gc(folder), folder=folder)
        self.row(case, "optimum of one pass", f"{optimum:,}", "1.00")
        self.row("", "vhd-tool gc, bytes written", f"{once:,}", f"{once / optimum:.3f}", "<= 1.05")
        self.row("", "vhd-util, link by link", "absent")
        chain = [copy / path.name for path in paths[:-1]]
        order = random.Random(LEVELS)
        total = 0
        while len(chain) > 1:
            index = order.randrange(1, len(chain))
            node = chain.pop(index)
            total += self.written(self.tools["vhd-tool"], "coalesce", node, "--quiet", folder=copy)
        self.row("", "vhd-tool coalesce, link by link", f"{total:,}", f"{total / optimum:.2f}")
        shutil.rmtree(folder)
        shutil.rmtree(copy)

    def plan(self, node, base):
        command = [self.tools["vhd-tool"], "coalesce", node, "--into", base, "--dry-run", "--json"]
        return json.loads(self.bench.run(*command, capture=True))

    def checkpoints(self):
        """A merge as it is, without checkpoints, and one of nothing: what journal, checkpoints and syncs add."""
        blocks = self.bench.count(512, 32)
        folder, paths = self.make("full-blocks", blocks)
        base, leaf = paths[0], paths[-1]
        pristine = folder / "pristine"
        self.bench.run("cp", "--sparse=always", base, pristine)
        empty, empty_paths = self.make("full-blocks", 1, "one-block")
        taken = {"as it is": [], "without checkpoints": [], "one block only": []}
        # The difference is small: more rounds tell it from noise.
        for _ in range(self.bench.rounds * 3):
            for name, step in (("as it is", 0), ("without checkpoints", 2**60)):
                self.bench.copier(pristine, base)()
                taken[name].append(self.merge(leaf, base, step))
            taken["one block only"].append(self.merge(empty_paths[-1], empty_paths[0], 0))
        median = {name: statistics.median(times) for name, times in taken.items()}
        added = median["as it is"] - median["without checkpoints"] + median["one block only"]
        case = f"merge of {blocks * 2} MiB"
        for name, seconds in median.items():
            self.row(case, name, self.bench.duration(seconds), f"{seconds / median['as it is']:.3f}")
            case = ""
        self.row("", "journal, checkpoints, syncs add", self.bench.duration(max(added, 0)),
                 f"{max(added, 0) / median['as it is']:.3f}", "<= 0.05")
        shutil.rmtree(folder)
        shutil.rmtree(empty)

    def merge(self, leaf, base, step):
        return json.loads(self.bench.run(self.tools["measure-merge"], leaf, base, step, capture=True))["seconds"]

    def resume(self):
        """Killed when half of the data is in the target."""
        blocks = self.bench.count(512, 64)
        folder, paths = self.make("full-blocks", blocks)
        base, leaf = paths[0], paths[-1]
        command = [self.tools["vhd-tool"], "coalesce", leaf, "--into", base, "--keep", "--quiet"]
        whole = blocks * 2 * MIB
        # A volume that was written to a moment ago could be written to again without showing it.
        time.sleep(0.2)
        with subprocess.Popen([str(word) for word in command]) as process:
            while base.stat().st_blocks * 512 < whole / 2 and process.poll() is None:
                time.sleep(0.0005)
            process.send_signal(signal.SIGKILL)
        at = base.stat().st_blocks * 512
        again = self.written(*command, folder=folder)
        case = f"killed at {at / whole:.0%} of {blocks * 2} MiB"
        self.row(case, "written again", f"{again:,}", f"{again / whole:.3f}", f"<= {1.05 - at / whole:.2f}")
        self.bench.verify_merge(leaf, base)()
        shutil.rmtree(folder)

    def planning(self):
        first = None
        for trees in (1_000, 5_000, 16_667) if not self.bench.quick else (100, 500):
            folder, _ = self.make("trees", trees)
            command = self.gc(folder, "--dry-run")
            self.bench.run(*command)
            seconds, memory = [], []
            for _ in range(self.bench.rounds):
                start = time.perf_counter()
                self.bench.run(*command)
                seconds.append(time.perf_counter() - start)
            memory = self.peak(command)
            median = statistics.median(seconds)
            first = first or (trees, median)
            linear = (median / first[1]) / (trees / first[0])
            must = "<= 0.5 s" if trees == 1_000 else "linear: about 1"
            self.row(f"plan {trees} trees of 3 images", "vhd-tool gc --dry-run", self.bench.duration(median),
                     f"{linear:.2f}", must)
            self.row("", "memory", f"{memory / MIB:.1f} MiB, {memory / trees / 3:.0f} bytes an image")
            shutil.rmtree(folder)

    @staticmethod
    def peak(command):
        process = subprocess.Popen([str(word) for word in command], stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            sys.exit(f"failed: {command}")
        return usage.ru_maxrss * 1024

    def two_trees(self):
        """Both at once with two threads, and one after the other with one."""
        blocks = self.bench.count(256, 32)
        apart, together = [], []
        for number in range(self.bench.rounds):
            folder, paths = self.make("two-trees", blocks, f"together-{number}")
            start = time.perf_counter()
            self.bench.run(*self.gc(folder, "--threads", "2"))
            together.append(time.perf_counter() - start)
            shutil.rmtree(folder)
            folder, paths = self.make("two-trees", blocks, f"apart-{number}")
            start = time.perf_counter()
            self.bench.run(*self.gc(folder, "--threads", "1"))
            apart.append(time.perf_counter() - start)
            shutil.rmtree(folder)
        one, two = statistics.median(apart), statistics.median(together)
        self.row(f"two trees of {blocks * 2} MiB", "one after the other", self.bench.duration(one), "1.00")
        self.row("", "together", self.bench.duration(two), f"{two / one:.2f}", "<= 0.65")

    def shared_blocks(self, kind):
        """Full blocks on a file system that can share them: a merge beside a copy of the same data."""
        blocks = self.bench.count(256, 32)
        folder, paths = self.make("full-blocks", blocks)
        base, leaf = paths[0], paths[-1]
        copy = folder.with_suffix(".copy")
        os.sync()
        time.sleep(0.2)
        device = self.device(folder)
        before = device_writes(device)
        start = time.perf_counter()
        self.bench.run(self.tools["vhd-tool"], "coalesce", leaf, "--into", base, "--keep", "--quiet")
        merged = time.perf_counter() - start
        os.sync()
        wrote = device_writes(device) - before
        self.bench.verify_merge(leaf, base)()
        start = time.perf_counter()
        self.bench.run("cp", "--reflink=never", "--sparse=never", leaf, copy)
        with open(copy, "rb") as file:
            os.fsync(file.fileno())
        copied = time.perf_counter() - start
        data = blocks * 2 * MIB
        self.row(f"{blocks * 2} MiB of full blocks on {kind}", "written to the device", f"{wrote:,}",
                 f"{wrote / data:.4f}", "< 0.02 of the data")
        self.row("", "vhd-tool coalesce", self.bench.duration(merged), "1.00")
        self.row("", "cp + sync", self.bench.duration(copied), f"{copied / merged:.1f}", ">= 10")
        shutil.rmtree(folder)
        copy.unlink()

    @staticmethod
    def device(folder):
        number = folder.stat().st_dev
        mounts = pathlib.Path("/proc/self/mountinfo").read_text().splitlines()
        best = max((line.split() for line in mounts if str(folder).startswith(line.split()[4])),
                   key=lambda fields: len(fields[4]))
        source = best[best.index("-") + 2]
        return pathlib.Path("/sys/class/block") / pathlib.Path(source).name if source.startswith("/dev/") else number

    def all(self):
        self.levels()
        self.checkpoints()
        self.resume()
        self.planning()
        self.two_trees()


def device_writes(device):
    """Bytes written to a block device so far: the seventh number of its stat, in sectors of 512 bytes."""
    return int((device / "stat").read_text().split()[6]) * 512


@contextlib.contextmanager
def mounted(kind, image, folder, size=6 * 2**30):
    """A file system of its own in a file, by loop, as root."""
    with open(image, "wb") as file:
        file.truncate(size)
    quiet = {"check": True, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run([f"mkfs.{kind}", "-q", image], **quiet)
    folder.mkdir()
    subprocess.run(["mount", "-o", "loop", image, folder], **quiet)
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], **quiet)
        image.unlink()
        folder.rmdir()
