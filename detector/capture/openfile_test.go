package capture

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// readTwice reads f from its start, twice.
func readTwice(t *testing.T, f *os.File) string {
	t.Helper()
	first, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	again, err := io.ReadAll(f)
	if err != nil || string(again) != string(first) {
		t.Errorf("read %q, then %q, %v", first, again, err)
	}
	return string(first)
}

func closeFile(t *testing.T, f *os.File) {
	t.Helper()
	if err := f.Close(); err != nil {
		t.Error(err)
	}
}

func TestOpenFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.pcap")
	if err := os.WriteFile(path, []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := OpenFile(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer closeFile(t, f)
	if got := readTwice(t, f); got != "content" {
		t.Errorf("read %q", got)
	}
}

func TestOpenFileRefuses(t *testing.T) {
	dir := t.TempDir()
	if _, err := OpenFile(t.Context(), filepath.Join(dir, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	if _, err := OpenFile(t.Context(), dir); err == nil || !strings.HasSuffix(err.Error(), "is a directory") {
		t.Errorf("directory: %v", err)
	}
}

// TestOpenFilePipe opens a named pipe before anyone writes to it, as happens
// when a shell substitutes a process.
func TestOpenFilePipe(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	path := filepath.Join(t.TempDir(), "pipe")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	written := make(chan error)
	go func() { written <- os.WriteFile(path, []byte("content"), 0) }()
	f, err := OpenFile(t.Context(), path)
	if err := errors.Join(err, <-written); err != nil {
		t.Fatal(err)
	}
	defer closeFile(t, f)
	if got := readTwice(t, f); got != "content" {
		t.Errorf("read %q", got)
	}
	if left, err := os.ReadDir(os.TempDir()); err != nil || len(left) > 0 {
		t.Errorf("the copy is still there: %v, %v", left, err)
	}
}

// TestSpoolEndsWithContext: waiting for the end of a pipe that has none ends
// with the context, in much less than a second.
func TestSpoolEndsWithContext(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer closeFile(t, r)
	defer closeFile(t, w)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	began := time.Now()
	if _, err := spool(ctx, r, t.TempDir()); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("spool: %v, want the context's error", err)
	}
	if took := time.Since(began); took > time.Second {
		t.Errorf("stopping took %v", took)
	}
}

func TestSpoolNamesTheDirectory(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer closeFile(t, r)
	closeFile(t, w)
	dir := filepath.Join(t.TempDir(), "none")
	if _, err := spool(t.Context(), r, dir); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), dir) {
		t.Errorf("spool: %v, want one about %s", err, dir)
	}
}
