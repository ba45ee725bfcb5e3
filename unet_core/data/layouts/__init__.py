"""How images and masks lie on disk: several ways to make the one list of samples.

    found = find_samples(data_dir, "folders")          # unet_core.data.layouts.find
    found.samples, found.problems

folders   train/image and train/label (val and test likewise), or image and label directly
voc       JPEGImages, SegmentationClass, and lists in ImageSets/Segmentation
csv       samples.csv with the columns image, mask and, if wanted, group, split, page
stack     a TIFF of many pages for the images and one for the masks
objects   a folder for each image: its picture in images, in masks a file for each object

Each page of a TIFF is a sample, whatever the layout.

A layout is a function of (data folder, `FolderNames`) that returns a `SampleListing`: the samples,
and everything that is wrong as complete sentences that name the file; it raises nothing for what a
folder may hold. Only names are looked at, and the number of pages. Samples have unique
names, come in numeric order, and say in which part (train, val, test) they are if the layout has
parts. To add one: a file here, and its line below.
"""

from unet_core.registry import Registry

LAYOUTS = Registry(
    {
        "folders": "unet_core.data.layouts.folders:find",
        "voc": "unet_core.data.layouts.voc:find",
        "csv": "unet_core.data.layouts.table:find",
        "stack": "unet_core.data.layouts.stack:find",
        "objects": "unet_core.data.layouts.objects:find",
    }
)
