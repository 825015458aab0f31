package blockfile

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/portsnare/portsnare/parsers/conf"
)

// Nobody may lead us to write to a file that is not ours to write to.
func TestUnsafeFileIsRefused(t *testing.T) {
	const shared = 0o777 | fs.ModeSticky
	tests := map[string]struct {
		directory fs.FileMode
		make      func(path, victim string) error
		want      string // in the error; empty: it is opened
	}{
		"a symbolic link":                         {0o755, func(path, victim string) error { return os.Symlink(victim, path) }, "symbolic link"},
		"a symbolic link to nothing":              {shared, func(path, _ string) error { return os.Symlink(path+".new", path) }, "symbolic link"},
		"a hard link":                             {0o755, func(path, victim string) error { return os.Link(victim, path) }, "hard link"},
		"a pipe":                                  {0o755, func(path, _ string) error { return unix.Mkfifo(path, 0o600) }, "not a regular file"},
		"a socket":                                {0o755, listen, "open: "},
		"a directory":                             {0o755, func(path, _ string) error { return os.Mkdir(path, 0o700) }, "is a directory"},
		"for the group, in a shared directory":    {shared, withMode(0o660), "can be written by others"},
		"for all, in a shared directory":          {shared, withMode(0o606), "can be written by others"},
		"for all, in a directory of a group":      {0o775, withMode(0o666), "can be written by others"},
		"for all, in a shared, unsticky one":      {0o777, withMode(0o666), "can be written by others"},
		"for its owner, in a shared directory":    {shared, withMode(0o644), ""},
		"for the group, in a directory of root's": {0o755, withMode(0o660), "can be written by others"},
		"for all, in a directory of root's":       {0o700, withMode(0o666), "can be written by others"},
	}
	for name, test := range tests {
		for _, format := range []conf.BanFileFormat{conf.BanFilePortSentry2, conf.BanFilePortSentry1} {
			t.Run(name+", "+string(format), func(t *testing.T) {
				victim := filepath.Join(t.TempDir(), "victim")
				write(t, victim, "precious")
				dir := filepath.Join(t.TempDir(), "dir")
				if err := os.Mkdir(dir, 0o700); err != nil {
					t.Fatal(err)
				}
				if err := os.Chmod(dir, test.directory); err != nil {
					t.Fatal(err)
				}
				path := filepath.Join(dir, "blocked")
				if err := test.make(path, victim); err != nil {
					t.Fatal(err)
				}
				f, err := Open(path, format, nil)
				if err == nil {
					defer f.Close()
				}
				if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
					t.Errorf("Open: %v, want %q", err, test.want)
				}
				checkFile(t, victim, "precious")
				if _, err := os.Lstat(path + ".new"); err == nil {
					t.Error("the link has been followed")
				}
			})
		}
	}
}

func withMode(mode fs.FileMode) func(path, victim string) error {
	return func(path, _ string) error {
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			return err
		}
		return os.Chmod(path, mode)
	}
}

// listen makes a socket at path.
func listen(path, _ string) error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Bind(fd, &unix.SockaddrUnix{Name: path})
}

func TestOwnership(t *testing.T) {
	tests := map[string]struct {
		owner, euid uint32
		shared      bool
		want        string // in the error
	}{
		"root's":                    {0, 0, true, ""},
		"root's, for another user":  {0, 1000, true, ""},
		"our own":                   {1000, 1000, true, ""},
		"others'":                   {1000, 0, true, "belongs to user 1000"},
		"others', for another user": {1001, 1000, true, "belongs to user 1001"},
		"others', in a directory they cannot use": {1000, 0, false, ""},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			err := check(owned{test.owner, 0o600}, test.shared, int(test.euid))
			if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
				t.Errorf("check: %v, want %q", err, test.want)
			}
		})
	}
}

// owned is what a file of a user's looks like. Giving a file away needs more than
// the user namespace in which the tests may run.
type owned struct {
	uid  uint32
	mode fs.FileMode
}

func (owned) Name() string        { return "blocked" }
func (owned) Size() int64         { return 0 }
func (o owned) Mode() fs.FileMode { return o.mode }
func (owned) ModTime() time.Time  { return time.Time{} }
func (owned) IsDir() bool         { return false }
func (o owned) Sys() any          { return &syscall.Stat_t{Uid: o.uid, Nlink: 1} }

func TestIsShared(t *testing.T) {
	tests := map[string]struct {
		dir  owned
		want bool
	}{
		"root's":                    {owned{0, 0o755}, false},
		"our own":                   {owned{1000, 0o700}, false},
		"another user's":            {owned{1001, 0o755}, true},
		"root's, open to all":       {owned{0, 0o777 | fs.ModeSticky}, true},
		"root's, open to its group": {owned{0, 0o775}, true},
	}
	for name, test := range tests {
		if got := isShared(test.dir, 1000); got != test.want {
			t.Errorf("%s: isShared = %v, want %v", name, got, test.want)
		}
	}
}
