"""Prints the SHA-256 of a disk as libvhdi reads it. Arguments: the image, then its parents in order."""

import hashlib
import sys

import pyvhdi

images = []
for path in sys.argv[1:]:
    image = pyvhdi.file()
    image.open(path)
    images.append(image)
for child, parent in zip(images, images[1:]):
    child.set_parent(parent)
disk = images[0]
digest = hashlib.sha256()
left = disk.get_media_size()
while left:
    data = disk.read_buffer(min(left, 1 << 20))
    digest.update(data)
    left -= len(data)
print(digest.hexdigest())
