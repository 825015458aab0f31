package logfile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/portsnare/portsnare/internal/nettest"
)

// The tests mount small file systems of their own.
func TestMain(m *testing.M) { nettest.Main(m) }

// smallDisk mounts a file system of the given size.
func smallDisk(t *testing.T, size string) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("small", dir, "tmpfs", 0, "size="+size); err != nil {
		t.Fatalf("mount a small file system: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func newFile(t *testing.T, path string) *File {
	t.Helper()
	f := New(path, 0o644)
	t.Cleanup(func() { f.Close() })
	return f
}

func mustAppend(t *testing.T, f *File, records string) {
	t.Helper()
	if err := f.Append([]byte(records)); err != nil {
		t.Fatalf("Append(%.40q): %v", records, err)
	}
}

func checkFile(t *testing.T, path, want string) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Errorf("%s holds %q, want %q", filepath.Base(path), got, want)
	}
}

func TestFileIsCreatedWithDirectories(t *testing.T) {
	defer unix.Umask(unix.Umask(0o022))
	path := filepath.Join(t.TempDir(), "a", "b", "log")
	f := New(path, 0o640)
	if err := f.Open(); err != nil {
		t.Fatal(err)
	}
	checkFile(t, path, "")
	mustAppend(t, f, "one\n")
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	checkFile(t, path, "one\n")
	for name, want := range map[string]fs.FileMode{path: 0o640, filepath.Dir(path): 0o755} {
		info, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		if got := info.Mode().Perm(); got != want {
			t.Errorf("%s has mode %v, want %v", name, got, want)
		}
	}
}

func TestFileKeepsWhatIsThere(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	for _, record := range []string{"one\n", "two\n"} {
		f := New(path, 0o644)
		mustAppend(t, f, record)
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	checkFile(t, path, "one\ntwo\n")
}

// A record that a full disk tore before a restart must not swallow the next.
func TestFileEndsATornRecord(t *testing.T) {
	for before, want := range map[string]string{
		"":             "new\n",
		"whole\n":      "whole\nnew\n",
		"whole\nto":    "whole\nto\nnew\n",
		"nothing else": "nothing else\nnew\n",
	} {
		path := filepath.Join(t.TempDir(), "log")
		if err := os.WriteFile(path, []byte(before), 0o600); err != nil {
			t.Fatal(err)
		}
		mustAppend(t, newFile(t, path), "new\n")
		checkFile(t, path, want)
	}
}

func TestFileFollowsRotation(t *testing.T) {
	tests := map[string]struct {
		rotate func(path string) error
		want   string // at the path afterwards
	}{
		"renamed": {func(path string) error { return os.Rename(path, path+".1") }, "two\n"},
		"removed": {os.Remove, "two\n"},
		"replaced": {func(path string) error {
			if err := os.Rename(path, path+".1"); err != nil {
				return err
			}
			return os.WriteFile(path, []byte("new\n"), 0o600)
		}, "new\ntwo\n"},
		"copied and truncated":       {func(path string) error { return os.Truncate(path, 0) }, "two\n"},
		"removed with its directory": {func(path string) error { return os.RemoveAll(filepath.Dir(path)) }, "two\n"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "logs", "log")
			f := newFile(t, path)
			mustAppend(t, f, "one\n")
			if err := test.rotate(path); err != nil {
				t.Fatal(err)
			}
			f.checked = time.Time{}
			mustAppend(t, f, "two\n")
			checkFile(t, path, test.want)
			if _, err := os.Stat(path + ".1"); err == nil {
				checkFile(t, path+".1", "one\n")
			}
		})
	}
}

// Between two looks a batch costs no more than its write.
func TestFileIsLookedForNowAndThen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	f := newFile(t, path)
	mustAppend(t, f, "one\n")
	f.checked = f.checked.Add(time.Hour)
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	mustAppend(t, f, "two\n")
	checkFile(t, path+".1", "one\ntwo\n")
	f.checked = f.checked.Add(-time.Hour - checkInterval)
	mustAppend(t, f, "three\n")
	checkFile(t, path, "three\n")
}

func TestFileFollowsSymbolicLinks(t *testing.T) {
	dir := t.TempDir()
	path, target := filepath.Join(dir, "log"), filepath.Join(dir, "elsewhere")
	if err := os.Symlink(target, path); err != nil {
		t.Fatal(err)
	}
	f := newFile(t, path)
	mustAppend(t, f, "one\n")
	checkFile(t, target, "one\n")
	if err := os.Rename(target, target+".1"); err != nil {
		t.Fatal(err)
	}
	f.checked = time.Time{}
	mustAppend(t, f, "two\n")
	checkFile(t, target, "two\n")
}

func TestFileRefusesWhatIsNoFile(t *testing.T) {
	dir := t.TempDir()
	pipe := filepath.Join(dir, "pipe")
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	reader, err := os.OpenFile(pipe, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	for name, path := range map[string]string{"directory": dir, "device": "/dev/null", "pipe": pipe} {
		if err := newFile(t, path).Open(); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: Open(%s) = %v, want an error that names it", name, path, err)
		}
	}
	if err := reader.Close(); err != nil {
		t.Fatal(err)
	}
	if err := newFile(t, pipe).Open(); err == nil {
		t.Error("Open of a pipe without a reader: no error")
	}
}

func TestFileComesBackWhenThePathDoes(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "logs")
	if err := os.WriteFile(dir, nil, 0o600); err != nil { // a file where the directory should be
		t.Fatal(err)
	}
	f := newFile(t, filepath.Join(dir, "log"))
	if err := f.Append([]byte("one\n")); err == nil {
		t.Fatal("Append below a file: no error")
	}
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	mustAppend(t, f, "one\n")
	checkFile(t, filepath.Join(dir, "log"), "one\n")
}

// batch returns n numbered records.
func batch(first, n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "record %06d of a batch that does not end where a page ends\n", first+i)
	}
	return b.String()
}

// fill appends batches until the disk is full and the File says so. It returns
// all that the File has taken and the batch that it has not.
func fill(t *testing.T, f *File) (taken, refused string) {
	t.Helper()
	var all strings.Builder
	for first := 0; first < 100_000; first += 50 {
		b := batch(first, 50)
		if err := f.Append([]byte(b)); err != nil {
			if !errors.Is(err, unix.ENOSPC) {
				t.Fatalf("Append: %v, want %v", err, unix.ENOSPC)
			}
			if len(f.stream.rest) > len(b) {
				t.Errorf("%d bytes are waiting, want at most a batch of %d", len(f.stream.rest), len(b))
			}
			return all.String(), b
		}
		all.WriteString(b)
	}
	t.Fatal("the disk never filled up")
	return "", ""
}

func TestFileOnAFullDisk(t *testing.T) {
	dir := smallDisk(t, "64k")
	ballast := filepath.Join(dir, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 16<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "log")
	f := newFile(t, path)
	taken, refused := fill(t, f)
	if err := f.Append([]byte(refused)); !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("Append while the disk is still full: %v", err)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	mustAppend(t, f, refused)
	checkFile(t, path, taken+refused)
}

func TestFileIsFinishedByClose(t *testing.T) {
	dir := smallDisk(t, "64k")
	ballast := filepath.Join(dir, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 16<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "log")
	f := New(path, 0o644)
	taken, _ := fill(t, f)
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	checkFile(t, path, taken)
}

// An administrator deletes the log that fills the disk: its space is free only
// once we let go of it.
func TestFileDeletedOnAFullDisk(t *testing.T) {
	path := filepath.Join(smallDisk(t, "64k"), "log")
	f := newFile(t, path)
	taken, refused := fill(t, f)
	written, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	whole := written[:strings.LastIndexByte(string(written), '\n')+1]
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	f.checked = time.Time{}
	mustAppend(t, f, refused)
	checkFile(t, path, taken[len(whole):]+refused)
}

// A cut record is finished in the file where it was begun, even if that has
// another name by now.
func TestFileRotatedOnAFullDisk(t *testing.T) {
	dir := smallDisk(t, "64k")
	ballast := filepath.Join(dir, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 16<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "log")
	f := newFile(t, path)
	taken, refused := fill(t, f)
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	f.checked = time.Time{}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	mustAppend(t, f, refused)
	checkFile(t, path+".1", taken)
	checkFile(t, path, refused)
}

func BenchmarkFileAppend(b *testing.B) {
	f := New(filepath.Join(b.TempDir(), "log"), 0o644)
	defer f.Close()
	records := []byte(batch(0, 256))
	b.SetBytes(int64(len(records)))
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if err := f.Append(records); err != nil {
			b.Fatal(err)
		}
		if i%1000 == 999 {
			if err := os.Truncate(f.path, 0); err != nil {
				b.Fatal(err)
			}
		}
	}
}
