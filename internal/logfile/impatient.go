package logfile

import (
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// patience is how long a reader may let us wait for room for a whole batch.
const patience = time.Second

// An impatientFile writes to a pipe, a socket or a terminal, but not for long.
// Standard output may be shared with other processes, so it cannot be made
// non-blocking; instead each piece waits for room first.
type impatientFile struct{ file *os.File }

// pieceSize is what a pipe takes without blocking when poll(2) finds it
// writable.
const pieceSize = 4096

// Write returns how much of b was written when the reader kept it waiting, or
// went away.
func (f impatientFile) Write(b []byte) (int, error) {
	conn, err := f.file.SyscallConn()
	if err != nil {
		return 0, err
	}
	deadline := time.Now().Add(patience)
	var n int
	var writeErr error
	err = conn.Write(func(fd uintptr) bool {
		for n < len(b) && writeErr == nil {
			var m int
			m, writeErr = writePiece(int(fd), b[n:min(n+pieceSize, len(b))], deadline)
			n += m
		}
		return true
	})
	if err == nil {
		err = writeErr
	}
	if err != nil {
		return n, fmt.Errorf("write %s: %w", f.file.Name(), err)
	}
	return n, nil
}

// writePiece writes b as far as the reader takes it in one go. It calls write(2)
// itself because os.File.Write ends the process when the reader of standard
// output has gone away.
func writePiece(fd int, b []byte, deadline time.Time) (int, error) {
	if err := waitForRoom(fd, deadline); err != nil {
		return 0, err
	}
	n, err := unix.Write(fd, b)
	if err == unix.EINTR || err == unix.EAGAIN {
		return 0, nil
	}
	return max(n, 0), err
}

// waitForRoom returns nil when a write would not block, be it because it fails.
func waitForRoom(fd int, deadline time.Time) error {
	for {
		left := time.Until(deadline).Milliseconds()
		if left <= 0 {
			return os.ErrDeadlineExceeded
		}
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
		n, err := unix.Poll(fds, int(left))
		if n > 0 {
			return nil
		}
		if err != nil && err != unix.EINTR {
			return err
		}
	}
}
