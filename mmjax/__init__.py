"""mmjax: train models that read pictures, video, sound and text together, in JAX."""
