"""What xapi and its storage manager run: listing a folder, checking a large image, sending and receiving disks."""

import os
import pathlib
import shutil
import struct

FILES = 2_100
GIB = 2**30
BLOCK = 2 * 2**20
# Data begins on a page, so that blocks with their bitmap are this far apart.
STRIDE = BLOCK + 4096


class DropIn:
    """The cases in one folder; `bench` runs commands, makes inputs and keeps the rows of the table."""

    def __init__(self, bench):
        self.bench, self.tool = bench, bench.tools["vhd-tool"]
        theirs = shutil.which("vhd-util")
        is_ours = theirs and pathlib.Path(theirs).resolve().name == "vhd-tool"
        self.vhd_util = None if is_ours else theirs

    def ours(self, *arguments):
        return [self.tool, "vhd-util", *arguments]

    def race(self, case, must, arguments, reference):
        """Times one command of both programs; what the other took elsewhere is told where it is not here."""

        def timed(command):
            return lambda: self.bench.duration_of(command)

        peer = timed([self.vhd_util, *arguments]) if self.vhd_util else reference
        ours = ("vhd-tool as vhd-util", must, timed(self.ours(*arguments)))
        self.bench.race(case, [ours, ("vhd-util", "", peer)])

    def scan(self):
        """Bases, hidden children and volumes, as a storage manager lists them."""
        files = self.bench.count(FILES, 300)
        folder = self.bench.folder / "scan"
        folder.mkdir()
        self.bench.run(self.bench.tools["make-input"], "trees", folder, files // 3, capture=True)
        reference = 0.056 if files == FILES else self.bench.ABSENT
        self.race(f"scan -f of {files} files", "<= 56 ms", ["scan", "-f", "-m", folder / "*.vhd"], reference)
        shutil.rmtree(folder)

    def check(self):
        """An image of 2,000 GiB of which 195 are there: the file is a hole but for tables and bitmaps."""
        blocks = self.bench.count(195, 4) * GIB // BLOCK
        image = self.bench.folder / "check.vhd"
        self.bench.run(*self.ours("create", "-n", image, "-s", 2000 * 1024))
        with open(image, "r+b") as file:
            footer = os.pread(file.fileno(), 512, 0)
            table, = struct.unpack(">Q", os.pread(file.fileno(), 8, 512 + 16))
            # Bitmaps lie right before a page.
            first = (image.stat().st_size + 4096) // 4096 * 4096 - 512 + 4096
            places = [first + STRIDE * number for number in range(blocks)]
            os.pwrite(file.fileno(), struct.pack(f">{blocks}I", *(place // 512 for place in places)), table)
            os.pwrite(file.fileno(), bytes(512), image.stat().st_size - 512)
            for place in places:
                os.pwrite(file.fileno(), b"\xff" * 512, place)
            os.pwrite(file.fileno(), footer, places[-1] + STRIDE)
        full = blocks * BLOCK == 195 * GIB
        case = f"check, 2000 GiB with {blocks * BLOCK // GIB} GiB"
        self.race(case, "< 1 s", ["check", "-n", image], 102.0 if full else self.bench.ABSENT)
        image.unlink()

    def stream(self):
        """A disk of 8 GiB with 2 GiB of data in pieces of 4 MiB, as it is sent and received."""
        data, disk = self.bench.count(2 * GIB, GIB // 8), self.bench.count(8 * GIB, GIB // 2)
        raw, image, made = (self.bench.folder / name for name in ("disk.raw", "disk.vhd", "made"))
        piece = 4 * 2**20
        with open(raw, "wb") as file:
            file.truncate(disk)
            for start in range(0, disk, disk // data * piece):
                os.pwrite(file.fileno(), os.urandom(piece), start)

        def sent(source_format, destination_format, source):
            return [self.tool, "stream", "--source-format", source_format, "--source", source, "--source-protocol", "none",
                    "--destination-format", destination_format, "--destination", f"file://{made}",
                    "--destination-protocol", "none"]

        self.bench.run(*sent("raw", "vhd", raw))
        made.rename(image)
        fresh = lambda: made.unlink(missing_ok=True)  # noqa: E731
        cp = ["cp", "--sparse=always", "--reflink=never", raw, made]
        contenders = [("cp --sparse=always", "", lambda: self.bench.timed(cp, made, fresh))]
        for name, command in [
            ("stream raw to vhd", sent("raw", "vhd", raw)),
            ("stream vhd to vhd", sent("vhd", "vhd", image)),
            ("stream vhd to raw", sent("vhd", "raw", image)),
            ("stream hybrid to vhd", sent("hybrid", "vhd", f"{raw}:{image}")),
            ("serve vhd to raw", [self.tool, "serve", "--source-format", "vhd", "--source-protocol", "none", "--source",
                                  f"file://{image}", "--destination", f"file://{made}", "--destination-format", "raw"]),
        ]:
            contenders.append((name, "<= 1.2", lambda command=command: self.bench.timed(command, made, fresh)))
        self.bench.race(f"{disk / GIB:g} GiB with {data / GIB:g} GiB of data", contenders)
        for path in (raw, image, made):
            path.unlink(missing_ok=True)

    def all(self):
        self.scan()
        self.check()
        self.stream()
