"""Writers: an Arch's rows and a bundle's tensors -> a runtime's own file, or what it is made from. One per format."""
