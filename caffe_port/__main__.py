"""python -m caffe_port: the same as ``caffe-port``."""

from caffe_port.tools.commands import main

if __name__ == "__main__":
    main()
