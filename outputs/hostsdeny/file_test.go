package hostsdeny

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/portsnare/portsnare/internal/nettest"
	"github.com/portsnare/portsnare/outputs/outputtest"
)

// The tests mount file systems of their own.
func TestMain(m *testing.M) {
	outputtest.Serve(newModule)
	nettest.Main(m)
}

// before is what the files of the tests hold at first.
const before = "# by hand\nsshd: 192.0.2.8\n"

// deny makes a hosts.deny in a directory of its own.
func deny(t *testing.T, text string) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "hosts.deny")
	write(t, path, text)
	return path
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// check fails unless the file holds want and nothing was left beside it.
func check(t *testing.T, path, want string) {
	t.Helper()
	if got := read(t, path); got != want {
		t.Errorf("%s holds %q, want %q", path, got, want)
	}
	left, err := filepath.Glob(filepath.Join(filepath.Dir(path), ".hosts.deny.*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %q (%v)", left, err)
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func mustAdd(t *testing.T, f *File, line string) {
	t.Helper()
	if present, err := f.Add(t.Context(), line); present || err != nil {
		t.Fatalf("Add(%q) = present %v, %v", line, present, err)
	}
}

func mustRemove(t *testing.T, f *File, line string) {
	t.Helper()
	if removed, err := f.Remove(t.Context(), line); !removed || err != nil {
		t.Fatalf("Remove(%q) = %v, %v", line, removed, err)
	}
}

func mount(t *testing.T, source, at, kind string, flags uintptr, data string) {
	t.Helper()
	if err := unix.Mount(source, at, kind, flags, data); err != nil {
		t.Fatalf("mount %s: %v", at, err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(at, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", at, err)
		}
	})
}

func inode(t *testing.T, path string) uint64 {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Sys().(*syscall.Stat_t).Ino
}

func TestAddAndRemove(t *testing.T) {
	path := deny(t, before)
	f := New(path, false)
	mustAdd(t, f, rule)
	check(t, path, before+rule+"\n")

	number := inode(t, path)
	if present, err := f.Add(t.Context(), rule); !present || err != nil {
		t.Errorf("second Add = present %v, %v", present, err)
	}
	if inode(t, path) != number {
		t.Error("a line that is present made a new file")
	}

	mustRemove(t, f, rule)
	check(t, path, before)
	if removed, err := f.Remove(t.Context(), rule); removed || err != nil {
		t.Errorf("second Remove = %v, %v", removed, err)
	}
}

func TestAddRefuses(t *testing.T) {
	dir := t.TempDir()
	open := filepath.Join(dir, "open")
	write(t, open, before)
	if err := os.Chmod(open, 0o646); err != nil {
		t.Fatal(err)
	}
	pipe := filepath.Join(dir, "pipe")
	if err := unix.Mkfifo(pipe, 0o644); err != nil {
		t.Fatal(err)
	}
	big := filepath.Join(dir, "big")
	write(t, big, strings.Repeat("\n", maxSize+1))
	full := filepath.Join(dir, "full")
	write(t, full, strings.Repeat("\n", maxSize))
	loop := filepath.Join(dir, "loop")
	if err := os.Symlink(loop, loop); err != nil {
		t.Fatal(err)
	}
	missing := filepath.Join(dir, "missing")
	tests := map[string]struct {
		path, line string
		want       string
	}{
		"missing":             {missing, rule, "Cannot stat file " + missing + ": No such file or directory"},
		"link to itself":      {loop, rule, "Cannot stat file " + loop + ": Too many levels of symbolic links"},
		"below a file":        {open + "/x", rule, "Cannot stat file " + open + "/x: Not a directory"},
		"anyone may write":    {open, rule, "File " + open + " is world-writable, refusing to modify"},
		"pipe":                {pipe, rule, "edit " + pipe + ": not a regular file"},
		"directory":           {dir, rule, "edit " + dir + ": not a regular file"},
		"too large":           {big, rule, "edit " + big + ": larger than 16 MiB; remove the lines of bans that are over"},
		"too large with ours": {full, rule, "edit " + full + ": larger than 16 MiB; remove the lines of bans that are over"},
		"no line":             {full, "", "line for hosts.deny is empty"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			present, err := New(tt.path, false).Add(t.Context(), tt.line)
			if present || err == nil || err.Error() != tt.want {
				t.Errorf("Add = present %v, %v, want %s", present, err, tt.want)
			}
		})
	}
	check(t, open, before)
	if _, err := New(missing, false).Add(t.Context(), rule); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Add to a missing file = %v, want one that is %v", err, fs.ErrNotExist)
	}
	if removed, err := New(missing, true).Remove(t.Context(), rule); removed || err != nil {
		t.Errorf("Remove from a missing file = %v, %v", removed, err)
	}
	if _, err := os.Stat(missing); err == nil {
		t.Error("Remove made the file")
	}
	if removed, err := New(open, false).Remove(t.Context(), ""); removed || err == nil {
		t.Errorf("Remove of no line = %v, %v, want an error", removed, err)
	}
}

func TestAddCreates(t *testing.T) {
	defer unix.Umask(unix.Umask(0o077))
	path := filepath.Join(t.TempDir(), "hosts.deny")
	mustAdd(t, New(path, true), rule)
	check(t, path, rule+"\n")
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o644 {
		t.Errorf("the new file has %v (%v), want 0644", info.Mode(), err)
	}
}

func TestEditKeepsOwnerAndAttributes(t *testing.T) {
	path := deny(t, before)
	owner := anotherUser(t)
	acl := []byte{2, 0, 0, 0} // version 2, then tag, permissions and user of each entry
	for _, e := range [][4]byte{{1, 6}, {4, 4}, {0x10, 4}, {0x20, 4}} {
		acl = append(acl, e[0], 0, e[1], 0, 0xff, 0xff, 0xff, 0xff)
	}
	named := bytes.Clone(acl)
	named = append(named[:12:12], append([]byte{2, 0, 4, 0, byte(owner), 0, 0, 0}, named[12:]...)...)
	for _, err := range []error{
		os.Chown(path, owner, owner),
		os.Chmod(path, 0o640),
		unix.Setxattr(path, "system.posix_acl_access", named, 0),
		unix.Setxattr(path, "user.comment", []byte("ours"), 0),
		// What the directory gives to new files is not for ours.
		unix.Setxattr(filepath.Dir(path), "system.posix_acl_default", acl, 0),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	want, number := facts(t, path), inode(t, path)
	f := New(path, false)
	mustAdd(t, f, rule)
	if got := facts(t, path); got != want {
		t.Errorf("Add made it\n%s\nwant\n%s", got, want)
	}
	if inode(t, path) == number {
		t.Error("the file was not replaced")
	}
	mustRemove(t, f, rule)
	if got := facts(t, path); got != want {
		t.Errorf("Remove made it\n%s\nwant\n%s", got, want)
	}

	// And nothing that it did not have.
	for _, name := range []string{"system.posix_acl_access", "user.comment"} {
		if err := unix.Removexattr(path, name); err != nil {
			t.Fatal(err)
		}
	}
	want = facts(t, path)
	mustAdd(t, f, rule)
	if got := facts(t, path); got != want {
		t.Errorf("Add without attributes made it\n%s\nwant\n%s", got, want)
	}
}

// anotherUser returns a user who is not root, where there is one: in a user
// namespace root may be alone.
func anotherUser(t *testing.T) int {
	t.Helper()
	var inside, outside, count int
	if _, err := fmt.Sscan(read(t, "/proc/self/uid_map"), &inside, &outside, &count); err != nil {
		t.Fatal(err)
	}
	return min(count-1, 7)
}

// facts returns all that a new text must not change.
func facts(t *testing.T, path string) string {
	t.Helper()
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		t.Fatal(err)
	}
	stat := info.Sys().(*syscall.Stat_t)
	text := fmt.Sprintf("%v %d:%d", info.Mode(), stat.Uid, stat.Gid)
	names, err := attributes(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		value := make([]byte, 100)
		n, err := unix.Fgetxattr(int(file.Fd()), name, value)
		if err != nil {
			t.Fatal(err)
		}
		text += fmt.Sprintf("\n%s %x", name, value[:n])
	}
	return text
}

func TestEditFollowsLinks(t *testing.T) {
	path := deny(t, before)
	dir := t.TempDir()
	first, second := filepath.Join(dir, "first"), filepath.Join(dir, "second")
	for link, to := range map[string]string{first: "second", second: path} {
		if err := os.Symlink(to, link); err != nil {
			t.Fatal(err)
		}
	}
	mustAdd(t, New(first, false), rule)
	check(t, path, before+rule+"\n")
	for link, want := range map[string]string{first: "second", second: path} {
		if to, err := os.Readlink(link); to != want || err != nil {
			t.Errorf("%s leads to %q, %v, want %q", link, to, err, want)
		}
	}
}

// places are where a file cannot be replaced by a new one.
var places = map[string]func(t *testing.T, path string){
	"two names": func(t *testing.T, path string) {
		if err := os.Link(path, path+".other"); err != nil {
			t.Fatal(err)
		}
	},
	"mount point": func(t *testing.T, path string) {
		mount(t, path, path, "", unix.MS_BIND, "")
	},
	"mount point in a read-only directory": func(t *testing.T, path string) {
		dir := filepath.Dir(path)
		mount(t, dir, dir, "", unix.MS_BIND, "")
		mount(t, path, path, "", unix.MS_BIND, "")
		if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""); err != nil {
			t.Fatal(err)
		}
	},
}

func TestEditInPlace(t *testing.T) {
	for name, arrange := range places {
		t.Run(name, func(t *testing.T) {
			path := deny(t, before)
			arrange(t, path)
			number := inode(t, path)
			f := New(path, false)
			mustAdd(t, f, rule)
			check(t, path, before+rule+"\n")
			mustAdd(t, f, rule+"1")
			mustRemove(t, f, rule)
			check(t, path, before+rule+"1\n")
			if inode(t, path) != number {
				t.Error("the file was replaced")
			}
		})
	}
}

func TestFullDiskLeavesTheFile(t *testing.T) {
	for name, links := range map[string]bool{"replaced": false, "in place": true} {
		t.Run(name, func(t *testing.T) {
			disk := t.TempDir()
			mount(t, "small", disk, "tmpfs", 0, "size=64k")
			path := filepath.Join(disk, "hosts.deny")
			// The line would lie half on a page that is there, half on the next.
			text := before + strings.Repeat("#", os.Getpagesize()-len(before)-6) + "\n"
			write(t, path, text)
			if links {
				if err := os.Link(path, path+".other"); err != nil {
					t.Fatal(err)
				}
			}
			filler, err := os.Create(filepath.Join(disk, "filler"))
			if err != nil {
				t.Fatal(err)
			}
			defer filler.Close()
			if _, err := filler.Write(make([]byte, 1<<20)); !errors.Is(err, unix.ENOSPC) {
				t.Fatalf("fill the disk: %v", err)
			}

			f := New(path, false)
			if present, err := f.Add(t.Context(), rule); present || !errors.Is(err, unix.ENOSPC) {
				t.Errorf("Add on a full disk = present %v, %v", present, err)
			}
			check(t, path, text)

			if err := filler.Truncate(0); err != nil {
				t.Fatal(err)
			}
			mustAdd(t, f, rule)
			check(t, path, text+rule+"\n")
		})
	}
}

// A longer text leaves no end behind that could be taken for a rule.
func TestPatch(t *testing.T) {
	tests := map[string]struct {
		old, text string
		at        int
		tail      string
	}{
		"line added":        {"a\n", "a\nb\n", 2, "b\n"},
		"line removed":      {"ab\ncd\nef\n", "ab\nef\n", 3, "ef\n\n\n\n"},
		"last line removed": {"a\nb\n", "a\n", 2, "\n\n"},
		"only line removed": {"a\n", "", 0, "\n\n"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if at, tail := patch([]byte(tt.old), []byte(tt.text)); at != tt.at || string(tail) != tt.tail {
				t.Errorf("patch(%q, %q) = %d, %q, want %d, %q", tt.old, tt.text, at, tail, tt.at, tt.tail)
			}
		})
	}
}

// Readers see a whole file at any time, and editors lose no line of each other.
func TestEditorsAtOnce(t *testing.T) {
	for name, arrange := range map[string]func(*testing.T, string){
		"replaced": func(*testing.T, string) {},
		"in place": places["two names"],
	} {
		t.Run(name, func(t *testing.T) {
			const editors, lines = 3, 20
			path := deny(t, before)
			arrange(t, path)
			var editing sync.WaitGroup
			for e := range editors {
				editing.Go(func() {
					f := New(path, false)
					f.patience = time.Minute
					for n := range lines {
						if present, err := f.Add(t.Context(), fmt.Sprintf("ALL: 192.0.2.%d : port %d", e, n)); present || err != nil {
							t.Errorf("Add = present %v, %v", present, err)
						}
					}
				})
			}
			done := make(chan struct{})
			go func() { editing.Wait(); close(done) }()
			for watching := name == "replaced"; watching; {
				select {
				case <-done:
					watching = false
				default:
				}
				if text := read(t, path); !strings.HasPrefix(text, before) || !strings.HasSuffix(text, "\n") {
					t.Fatalf("a reader saw %q", text)
				}
			}
			<-done
			text := read(t, path)
			for e := range editors {
				for n := range lines {
					if line := fmt.Sprintf("\nALL: 192.0.2.%d : port %d\n", e, n); strings.Count(text, line) != 1 {
						t.Errorf("%q is there %d times", line, strings.Count(text, line))
					}
				}
			}
			if got, want := strings.Count(text, "\n"), 2+editors*lines; got != want {
				t.Errorf("the file has %d lines, want %d", got, want)
			}
		})
	}
}

// A user who may only read the file can hold its lock for ever.
func TestLockIsNotWaitedForForEver(t *testing.T) {
	hold := func(t *testing.T, path string) {
		t.Helper()
		reader, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { reader.Close() })
		if err := unix.Flock(int(reader.Fd()), unix.LOCK_EX); err != nil {
			t.Fatal(err)
		}
	}
	hasty := func(path string) *File {
		f := New(path, false)
		f.patience = 20 * time.Millisecond
		return f
	}
	t.Run("replaced", func(t *testing.T) {
		path := deny(t, before)
		hold(t, path)
		mustAdd(t, hasty(path), rule)
		check(t, path, before+rule+"\n")
	})
	t.Run("in place", func(t *testing.T) {
		path := deny(t, before)
		hold(t, path)
		places["two names"](t, path)
		want := "edit " + path + ": somebody else holds its lock; lslocks says who"
		if _, err := hasty(path).Add(t.Context(), rule); err == nil || err.Error() != want {
			t.Errorf("Add = %v, want %s", err, want)
		}
		check(t, path, before)
	})
	t.Run("canceled", func(t *testing.T) {
		path := deny(t, before)
		hold(t, path)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := New(path, false).Add(ctx, rule); !errors.Is(err, context.Canceled) {
			t.Errorf("Add = %v, want %v", err, context.Canceled)
		}
		check(t, path, before)
	})
}

// Somebody edits the file with a tool that knows no lock, after we have read it.
func TestEditBeginsAnewWhenTheFileChanges(t *testing.T) {
	theirs := map[string]func(t *testing.T, path string){
		"appended": func(t *testing.T, path string) {
			file, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer file.Close()
			if _, err := file.WriteString("theirs\n"); err != nil {
				t.Fatal(err)
			}
		},
		"replaced": func(t *testing.T, path string) {
			write(t, path+".new", before+"theirs\n")
			if err := os.Rename(path+".new", path); err != nil {
				t.Fatal(err)
			}
		},
	}
	for name, edit := range theirs {
		t.Run(name, func(t *testing.T) {
			path := deny(t, before)
			times := 0
			err := New(path, false).edit(t.Context(), func(text []byte) []byte {
				if times++; times == 1 {
					edit(t, path)
				}
				return append(bytes.Clone(text), "ours\n"...)
			})
			if err != nil || times != 2 {
				t.Errorf("edit took %d times: %v", times, err)
			}
			check(t, path, before+"theirs\nours\n")
		})
	}
	t.Run("again and again", func(t *testing.T) {
		path := deny(t, before)
		err := New(path, false).edit(t.Context(), func(text []byte) []byte {
			theirs["appended"](t, path)
			return append(bytes.Clone(text), "ours\n"...)
		})
		if !errors.Is(err, errChanged) {
			t.Errorf("edit = %v, want %v", err, errChanged)
		}
		check(t, path, before+strings.Repeat("theirs\n", maxTries))
	})
}

func TestEditLeaksNothing(t *testing.T) {
	path := deny(t, before)
	f := New(path, false)
	count := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	mustAdd(t, f, rule)
	mustRemove(t, f, rule)
	open := count()
	for range 20 {
		mustAdd(t, f, rule)
		mustRemove(t, f, rule)
	}
	if got := count(); got != open {
		t.Errorf("%d descriptors are open, before it were %d", got, open)
	}
}

func BenchmarkAdd(b *testing.B) {
	path := filepath.Join(b.TempDir(), "hosts.deny")
	if err := os.WriteFile(path, bytes.Repeat([]byte("ALL: 192.0.2.7 : DENY\n"), 10_000), 0o644); err != nil {
		b.Fatal(err)
	}
	f := New(path, false)
	n := 0
	for b.Loop() {
		n++
		if _, err := f.Add(b.Context(), fmt.Sprintf("ALL: 2001:db8::%x", n)); err != nil {
			b.Fatal(err)
		}
	}
}
