"""Where the images to judge come from: folders laid out by hand, or the run of a batch; both become a `Study`."""
