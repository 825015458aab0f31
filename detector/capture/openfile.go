package capture

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// OpenFile opens a capture so that it can be read twice, once by [Inspect] and
// once by [Replay]. The name "-" means the standard input. Of what is no
// regular file, such as a pipe, it first makes a copy, which waits for the
// end of the input or of ctx; the copy has no name and vanishes when it is
// closed. The caller closes the file.
func OpenFile(ctx context.Context, name string) (*os.File, error) {
	if name == "-" {
		return rewindable(ctx, os.Stdin)
	}
	// Without O_NONBLOCK, to open a named pipe would wait for its writer.
	f, err := os.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open the capture: %w", err)
	}
	r, err := rewindable(ctx, f)
	if r != f {
		_ = f.Close() // only read: nothing can be lost
	}
	return r, err
}

// rewindable returns f if it is a regular file, and otherwise a copy.
func rewindable(ctx context.Context, f *os.File) (*os.File, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("open the capture: %w", err)
	}
	if info.Mode().IsRegular() {
		return f, nil
	}
	if info.IsDir() {
		return nil, fmt.Errorf("open the capture: %s is a directory", f.Name())
	}
	return spool(ctx, f, os.TempDir())
}

// spool copies f to a file in dir that is no longer there when it returns.
func spool(ctx context.Context, f *os.File, dir string) (*os.File, error) {
	copied, err := os.CreateTemp(dir, "portsnare-*.pcap")
	if err != nil {
		return nil, fmt.Errorf("copy the capture: %w", err)
	}
	err = os.Remove(copied.Name())
	if err == nil {
		_, err = io.Copy(copied, untilDone(ctx, f))
	}
	if err == nil {
		_, err = copied.Seek(0, io.SeekStart)
	}
	if err != nil {
		_ = copied.Close()
		return nil, fmt.Errorf("copy the capture to %s, or to where TMPDIR says: %w", dir, err)
	}
	return copied, nil
}

// readerFunc is a function that reads.
type readerFunc func(p []byte) (int, error)

func (read readerFunc) Read(p []byte) (int, error) { return read(p) }

// untilDone returns a reader of a pipe or terminal that gives up when ctx
// ends. It looks for that several times a second: a deadline would need
// non-blocking mode, which a standard input shares with other processes.
func untilDone(ctx context.Context, f *os.File) io.Reader {
	const interval = 200 // milliseconds
	return readerFunc(func(p []byte) (int, error) {
		for {
			if err := ctx.Err(); err != nil {
				return 0, err
			}
			ready, err := readable(f, interval)
			if err != nil {
				return 0, err
			}
			if ready {
				return f.Read(p)
			}
		}
	})
}

// readable waits up to the given milliseconds for data or the end of the file.
func readable(f *os.File, milliseconds int) (bool, error) {
	conn, err := f.SyscallConn()
	if err != nil {
		return false, err
	}
	var n int
	var pollErr error
	err = conn.Control(func(fd uintptr) {
		n, pollErr = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, milliseconds)
	})
	if err != nil {
		return false, err
	}
	if pollErr != nil && !errors.Is(pollErr, unix.EINTR) {
		return false, fmt.Errorf("poll: %w", pollErr)
	}
	return n > 0, nil
}
