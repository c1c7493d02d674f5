"""The HTTP face: the data plane's pipeline and the control plane's composition."""
