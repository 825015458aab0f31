package blockfile

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/portsnare/portsnare/internal/nettest"
	"github.com/portsnare/portsnare/parsers/conf"
	"github.com/portsnare/portsnare/parsers/logline"
)

// The tests mount a small file system of their own.
func TestMain(m *testing.M) { nettest.Main(m) }

// A subject is a File with what it warned of.
type subject struct {
	*File
	warnings []conf.Warning
}

func openFile(path string, format conf.BanFileFormat) (*subject, error) {
	s := new(subject)
	file, err := Open(path, format, func(w conf.Warning) { s.warnings = append(s.warnings, w) })
	s.File = file
	return s, err
}

func mustOpen(t *testing.T, path string, format conf.BanFileFormat) *subject {
	t.Helper()
	s, err := openFile(path, format)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func mustAdd(t *testing.T, s *subject, b logline.Blocked) {
	t.Helper()
	if err := s.Add(b); err != nil {
		t.Fatalf("Add(%v): %v", b.Source, err)
	}
}

func (s *subject) checkHeld(t *testing.T, want ...netip.Addr) {
	t.Helper()
	s.looked = time.Time{}
	if s.Holds(netip.IPv4Unspecified()) {
		t.Error("a source is held that never came")
	}
	for _, source := range want {
		if !s.Holds(source) {
			t.Errorf("%v is not held", source)
		}
	}
	if s.Len() != len(want) {
		t.Errorf("%d sources are held, want %v", s.Len(), want)
	}
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
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

func TestPortSentry2IsKeptAcrossStarts(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state", "blocked")
	first := mustOpen(t, path, conf.BanFilePortSentry2)
	checkFile(t, path, "")
	mustAdd(t, first, blocked(v4, "attacker.example.org"))
	mustAdd(t, first, blocked(v6, ""))
	mustAdd(t, first, blocked(v4, "")) // again
	first.checkHeld(t, v4, v6)
	checkFile(t, path, bytes4+bytes6)
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}

	second := mustOpen(t, path, conf.BanFilePortSentry2)
	second.checkHeld(t, v4, v6)
	mustAdd(t, second, blocked(v4Other, ""))
	checkFile(t, path, bytes4+bytes6+bytes4Other)
	if len(second.warnings) > 0 {
		t.Errorf("warnings: %q", second.warnings)
	}
}

func TestPortSentry1IsEmptiedAtTheStart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "blocked.tcp")
	first := mustOpen(t, path, conf.BanFilePortSentry1)
	mustAdd(t, first, blocked(v4, "attacker.example.org"))
	mustAdd(t, first, blocked(v6, ""))
	mustAdd(t, first, blocked(v6, "")) // again
	first.checkHeld(t, v4, v6)
	checkFile(t, path, line4+line6)
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	mustOpen(t, path, conf.BanFilePortSentry1).checkHeld(t)
	checkFile(t, path, "")
}

func TestHoldsComparesWholeAddresses(t *testing.T) {
	for _, format := range []conf.BanFileFormat{conf.BanFilePortSentry2, conf.BanFilePortSentry1} {
		f := mustOpen(t, filepath.Join(t.TempDir(), "blocked"), format)
		mustAdd(t, f, blocked(netip.MustParseAddr("203.0.113.77"), ""))
		mustAdd(t, f, blocked(netip.MustParseAddr("fe80::1"), ""))
		for source, want := range map[string]bool{
			"203.0.113.77":        true,
			"::ffff:203.0.113.77": true,
			"fe80::1":             true,
			"fe80::1%eth0":        true,
			"203.0.113.7":         false, // PortSentry 1.2 held it, as a part of the other
			"3.0.113.77":          false,
			"fe80::11":            false,
		} {
			if got := f.Holds(netip.MustParseAddr(source)); got != want {
				t.Errorf("%s: Holds(%s) = %v, want %v", format, source, got, want)
			}
		}
	}
}

func TestPortSentry2IsMended(t *testing.T) {
	tests := map[string]struct {
		before   string
		after    string // and that is held
		held     []netip.Addr
		upstream string // of the warning, with PATH for the path
		copied   bool   // all of it lies beside the file
	}{
		"torn in the address": {
			bytes4 + bytes6[:17], bytes4, []netip.Addr{v4}, "Unable to read address from blocked file: PATH", false,
		},
		"torn in the family": {
			bytes6 + bytes4[:1], bytes6, []netip.Addr{v6}, "Unable to read address from blocked file: PATH", false,
		},
		"only the start of a record": {
			bytes4[:3], "", nil, "Unable to read address from blocked file: PATH", false,
		},
		"an unknown family": {
			bytes4 + family(7) + bytes6, bytes4, []netip.Addr{v4}, "Unsupported address family: 7", true,
		},
		"zeros after a power cut": {
			bytes4 + strings.Repeat("\x00", 12), bytes4, []netip.Addr{v4}, "Unsupported address family: 0", true,
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "blocked")
			write(t, path, test.before)
			f := mustOpen(t, path, conf.BanFilePortSentry2)
			f.checkHeld(t, test.held...)
			checkFile(t, path, test.after)
			want := strings.Replace(test.upstream, "PATH", path, 1)
			if len(f.warnings) != 1 || f.warnings[0].Upstream != want {
				t.Errorf("warnings %q, want PortSentry's %q", f.warnings, want)
			}
			copies, err := filepath.Glob(path + ".damaged-*")
			if err != nil || len(copies) > 0 != test.copied {
				t.Fatalf("copies: %q, %v", copies, err)
			}
			if test.copied {
				checkFile(t, copies[0], test.before)
				if text := f.warnings[0].String(); !strings.Contains(text, copies[0]) {
					t.Errorf("%q does not name the copy %s", text, copies[0])
				}
			}
			mustAdd(t, f, blocked(v4Other, ""))
			checkFile(t, path, test.after+bytes4Other)
		})
	}
}

// A file of the other PortSentry, or one that was named by mistake, is never
// changed.
func TestForeignFileIsRefused(t *testing.T) {
	const text = "root:x:0:0:root:/root:/bin/bash\n"
	tests := map[string]struct {
		format  conf.BanFileFormat
		content string
		want    string // of the error, after the path
	}{
		"1.2 for 2": {
			conf.BanFilePortSentry2, line4,
			"a list of PortSentry 1.2 where one of PortSentry 2 belongs; convert it with: portsnare blocked convert --to portsentry2 --output NEW PATH",
		},
		"1.2 with a comment for 2": {
			conf.BanFilePortSentry2, "# ours\n" + line4,
			"a list of PortSentry 1.2 where one of PortSentry 2 belongs; convert it with: portsnare blocked convert --to portsentry2 --output NEW PATH",
		},
		"2 for 1.2": {
			conf.BanFilePortSentry1, bytes4 + bytes6,
			"a list of PortSentry 2 where one of PortSentry 1.2 belongs; convert it with: portsnare blocked convert --to portsentry1 --output NEW PATH",
		},
		"another text for 2":   {conf.BanFilePortSentry2, text, fmt.Sprintf("no list of PortSentry 2: unknown address family %d; move it away", binary.NativeEndian.Uint16([]byte(text)))},
		"another text for 1.2": {conf.BanFilePortSentry1, text, "neither a list of PortSentry 2 nor one of PortSentry 1.2"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "blocked")
			write(t, path, test.content)
			_, err := Open(path, test.format, nil)
			fault, ok := errors.AsType[conf.Fault](err)
			want := strings.Replace(test.want, "PATH", path, 1)
			if !ok || err.Error() != path+": "+want {
				t.Errorf("Open: %v\nwant  %s: %s", err, path, want)
			}
			upstream := "Unable to open block file for writing " + path + ": " + want
			if test.format == conf.BanFilePortSentry1 {
				upstream = "adminalert: ERROR: Cannot delete blocked file on startup: " + path + "."
			}
			if fault.Upstream != upstream {
				t.Errorf("in PortSentry's words: %q\nwant %q", fault.Upstream, upstream)
			}
			checkFile(t, path, test.content)
		})
	}
}

func TestMissingRightsInPortSentrysWords(t *testing.T) {
	path := filepath.Join(t.TempDir(), "blocked")
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	_, err := Open(path, conf.BanFilePortSentry2, nil)
	fault, _ := errors.AsType[conf.Fault](err)
	if want := "Unable to open block file for writing " + path + ": Is a directory"; fault.Upstream != want {
		t.Errorf("Open of a directory: %v, in PortSentry's words %q, want %q", err, fault.Upstream, want)
	}
	if !errors.Is(err, unix.EISDIR) {
		t.Errorf("%v is not %v", err, unix.EISDIR)
	}
}

func TestSecondDaemonIsRefused(t *testing.T) {
	for _, format := range []conf.BanFileFormat{conf.BanFilePortSentry2, conf.BanFilePortSentry1} {
		path := filepath.Join(t.TempDir(), "blocked")
		first := mustOpen(t, path, format)
		mustAdd(t, first, blocked(v4, ""))
		before, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Open(path, format, nil); err == nil || !strings.Contains(err.Error(), "in use by another daemon") {
			t.Errorf("%s: the second Open: %v, want it refused", format, err)
		}
		checkFile(t, path, string(before))
		if err := first.Close(); err != nil {
			t.Fatal(err)
		}
		mustOpen(t, path, format)
	}
}

func TestPortSentry1FollowsEditsByHand(t *testing.T) {
	tests := map[string]struct {
		edit     func(path string) error
		want     []netip.Addr
		warnings int
		after    string // of the file, once another source has been added
	}{
		"a line removed in place": {
			func(path string) error { return os.WriteFile(path, []byte(line6), 0) }, []netip.Addr{v6}, 0, line6 + line4Other,
		},
		"a line removed by an editor that renames": {
			func(path string) error {
				return errors.Join(os.WriteFile(path+"~", []byte(line6), 0o644), os.Rename(path+"~", path))
			}, []netip.Addr{v6}, 0, line6 + line4Other,
		},
		"a line changed, as long as before": {
			func(path string) error {
				edited := strings.Replace(line4, "203.0.113.7", "203.0.113.9", 1) + line6
				return errors.Join(os.WriteFile(path, []byte(edited), 0), os.Chtimes(path, time.Time{}, time.Unix(1795333205, 0)))
			},
			[]netip.Addr{netip.MustParseAddr("203.0.113.9"), v6},
			0,
			strings.Replace(line4, "203.0.113.7", "203.0.113.9", 1) + line6 + line4Other,
		},
		"a line removed, and the time kept": {
			func(path string) error {
				return keepTime(path, func() error { return os.WriteFile(path, []byte(line6), 0) })
			}, []netip.Addr{v6}, 0, line6 + line4Other,
		},
		"replaced by one of the same length and time": {
			func(path string) error {
				return keepTime(path, func() error {
					edited := strings.Replace(line4, "203.0.113.7", "203.0.113.9", 1) + line6
					return errors.Join(os.WriteFile(path+"~", []byte(edited), 0o644), os.Rename(path+"~", path))
				})
			},
			[]netip.Addr{netip.MustParseAddr("203.0.113.9"), v6},
			0,
			strings.Replace(line4, "203.0.113.7", "203.0.113.9", 1) + line6 + line4Other,
		},
		"the last newline left out": {
			func(path string) error { return os.WriteFile(path, []byte(strings.TrimSuffix(line4, "\n")), 0) },
			[]netip.Addr{v4},
			0, line4 + line4Other,
		},
		"a line that cannot be read": {
			func(path string) error { return os.WriteFile(path, []byte(line4+"203.0.113.8\n"), 0) },
			[]netip.Addr{v4},
			1, line4 + "203.0.113.8\n" + line4Other,
		},
		"emptied": {func(path string) error { return os.Truncate(path, 0) }, nil, 0, line4Other},
		"removed": {os.Remove, nil, 0, line4Other},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "blocked.tcp")
			f := mustOpen(t, path, conf.BanFilePortSentry1)
			mustAdd(t, f, blocked(v4, "attacker.example.org"))
			mustAdd(t, f, blocked(v6, ""))
			if err := test.edit(path); err != nil {
				t.Fatal(err)
			}
			f.checkHeld(t, test.want...)
			if len(f.warnings) != test.warnings {
				t.Errorf("warnings %q, want %d", f.warnings, test.warnings)
			}
			mustAdd(t, f, blocked(v4Other, ""))
			checkFile(t, path, test.after)
			f.checkHeld(t, append(test.want, v4Other)...)

			last := blocked(netip.MustParseAddr("192.0.2.1"), "")
			mustAdd(t, f, last)
			checkFile(t, path, string(Append([]byte(test.after), conf.BanFilePortSentry1, &last)))
		})
	}
}

// keepTime runs edit and sets the time of the file back to what it was.
func keepTime(path string, edit func() error) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	return errors.Join(edit(), os.Chtimes(path, time.Time{}, info.ModTime()))
}

// An edit at the moment of our own is not mistaken for it.
func TestPortSentry1SeesAnEditBesideItsOwn(t *testing.T) {
	path := filepath.Join(t.TempDir(), "blocked.tcp")
	f := mustOpen(t, path, conf.BanFilePortSentry1)
	write(t, path, line4)
	b := blocked(v6, "")
	if err := f.appendLocked(&b); err != nil { // as Add does, having looked just before the edit
		t.Fatal(err)
	}
	f.checkHeld(t, v4, v6)
}

// Between two looks an answer costs no system call.
func TestHoldsLooksNowAndThen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "blocked.tcp")
	f := mustOpen(t, path, conf.BanFilePortSentry1)
	mustAdd(t, f, blocked(v4, ""))
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	f.looked = time.Now().Add(time.Hour)
	if !f.Holds(v4) {
		t.Errorf("%v is not held although it is not yet time to look", v4)
	}
	f.looked = time.Now().Add(-lookInterval)
	if f.Holds(v4) {
		t.Errorf("%v is held although the file is gone", v4)
	}
}

// What takes the list's place must be as safe as the list. Until then those who
// were held stay held, and nothing is written.
func TestPortSentry1RefusesAnUnsafeReplacement(t *testing.T) {
	dir := t.TempDir()
	path, elsewhere := filepath.Join(dir, "blocked.tcp"), filepath.Join(dir, "elsewhere")
	f := mustOpen(t, path, conf.BanFilePortSentry1)
	mustAdd(t, f, blocked(v4, "attacker.example.org"))
	write(t, elsewhere, line6)
	if err := errors.Join(os.Remove(path), os.Symlink(elsewhere, path)); err != nil {
		t.Fatal(err)
	}
	f.checkHeld(t, v4)
	f.checkHeld(t, v4)
	if len(f.warnings) != 1 || !strings.Contains(f.warnings[0].Text, "symbolic link") {
		t.Errorf("warnings %q, want one of the symbolic link", f.warnings)
	} else if want := "adminalert: ERROR: Cannot open blocked file: " + path + "."; f.warnings[0].Upstream != want {
		t.Errorf("in PortSentry's words: %q, want %q", f.warnings[0].Upstream, want)
	}
	if err := f.Add(blocked(v4Other, "")); err == nil {
		t.Error("Add to a symbolic link: no error")
	}
	if err := f.Add(blocked(v4, "")); err != nil {
		t.Errorf("Add of a source that is held: %v", err)
	}
	if err := f.Flush(); err == nil {
		t.Error("Flush to a symbolic link: no error")
	}
	f.checkHeld(t, v4, v4Other)
	checkFile(t, elsewhere, line6)

	if err := os.Rename(elsewhere, path); err != nil {
		t.Fatal(err)
	}
	f.checkHeld(t, v6, v4Other)
	if err := f.Flush(); err != nil {
		t.Error(err)
	}
	checkFile(t, path, line6+line4Other)
}

// PortSentry 2's list is read at the start; who removes the file while we run
// gets a new one with those who come.
func TestPortSentry2FollowsItsPath(t *testing.T) {
	tests := map[string]struct {
		edit  func(path string) error
		held  []netip.Addr
		after string
	}{
		"removed":                    {os.Remove, []netip.Addr{v4, v4Other}, bytes4Other},
		"removed with its directory": {func(path string) error { return os.RemoveAll(filepath.Dir(path)) }, []netip.Addr{v4, v4Other}, bytes4Other},
		"emptied":                    {func(path string) error { return os.Truncate(path, 0) }, []netip.Addr{v4, v4Other}, bytes4Other},
		"cut in the middle":          {func(path string) error { return os.Truncate(path, 3) }, []netip.Addr{v4, v4Other}, bytes4Other},
		"replaced": {
			func(path string) error {
				return errors.Join(os.WriteFile(path+"~", []byte(bytes6), 0o600), os.Rename(path+"~", path))
			}, []netip.Addr{v4, v6, v4Other}, bytes6 + bytes4Other,
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "state", "blocked")
			f := mustOpen(t, path, conf.BanFilePortSentry2)
			mustAdd(t, f, blocked(v4, ""))
			if err := test.edit(path); err != nil {
				t.Fatal(err)
			}
			f.checkHeld(t, v4)
			mustAdd(t, f, blocked(v4Other, ""))
			f.checkHeld(t, test.held...)
			checkFile(t, path, test.after)
		})
	}
}

func TestPortSentry2IsNotWrittenIntoAnotherList(t *testing.T) {
	path := filepath.Join(t.TempDir(), "blocked")
	f := mustOpen(t, path, conf.BanFilePortSentry2)
	write(t, path, line4)
	for _, source := range []netip.Addr{v6, v4Other} {
		if err := f.Add(blocked(source, "")); err == nil || !strings.Contains(err.Error(), "a list of PortSentry 1.2") {
			t.Errorf("Add: %v, want the file refused", err)
		}
	}
	if err := f.Close(); err == nil || !strings.Contains(err.Error(), "records not written: 2") {
		t.Errorf("Close: %v, want it to tell of two records", err)
	}
	checkFile(t, path, line4)
}

// PortSentry 1.2 has an error for a wrong path. It makes no directories that
// nobody asked for.
func TestPortSentry1MakesNoDirectories(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state", "blocked.tcp")
	_, err := Open(path, conf.BanFilePortSentry1, nil)
	fault, _ := errors.AsType[conf.Fault](err)
	if want := "adminalert: ERROR: Cannot delete blocked file on startup: " + path + "."; fault.Upstream != want || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Open: %v, in PortSentry's words %q, want %q", err, fault.Upstream, want)
	}
	dir := filepath.Dir(path)
	if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the directory has been made: %v", err)
	}

	// Nor if they go while it runs.
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	f := mustOpen(t, path, conf.BanFilePortSentry1)
	mustAdd(t, f, blocked(v4, "attacker.example.org"))
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	f.checkHeld(t)
	if err := f.Add(blocked(v6, "")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Add without the directory: %v", err)
	}
	f.checkHeld(t, v6)
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	f.checkHeld(t, v6)
	mustAdd(t, f, blocked(v4Other, ""))
	checkFile(t, path, line6+line4Other)
}

// The daemon may change its directory after the start.
func TestRelativePathStaysTheSame(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	f := mustOpen(t, "blocked", conf.BanFilePortSentry1)
	t.Chdir(t.TempDir())
	mustAdd(t, f, blocked(v4Other, ""))
	checkFile(t, filepath.Join(dir, "blocked"), line4Other)
	f.checkHeld(t, v4Other)
}

func TestModeOfANewFile(t *testing.T) {
	defer unix.Umask(unix.Umask(0o077)) // PortSentry 1.2's
	tests := map[string]struct {
		format    conf.BanFileFormat
		directory fs.FileMode
		want      fs.FileMode
	}{
		"PortSentry 2":                             {conf.BanFilePortSentry2, 0o755, 0o600},
		"PortSentry 1.2":                           {conf.BanFilePortSentry1, 0o755, 0o644},
		"PortSentry 2 in a shared directory":       {conf.BanFilePortSentry2, 0o777 | fs.ModeSticky, 0o600},
		"PortSentry 1.2 in a shared directory":     {conf.BanFilePortSentry1, 0o777 | fs.ModeSticky, 0o644},
		"PortSentry 1.2 in a directory of a group": {conf.BanFilePortSentry1, 0o775, 0o644},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.Chmod(dir, test.directory); err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(dir, "blocked")
			mustOpen(t, path, test.format)
			info, err := os.Stat(path)
			if err != nil {
				t.Fatal(err)
			}
			if info.Mode() != test.want {
				t.Errorf("mode %v, want %v", info.Mode(), test.want)
			}
		})
	}
}

func TestHoldsAllocatesNothing(t *testing.T) {
	for _, format := range []conf.BanFileFormat{conf.BanFilePortSentry2, conf.BanFilePortSentry1} {
		f := mustOpen(t, filepath.Join(t.TempDir(), "blocked"), format)
		mustAdd(t, f, blocked(v4, ""))
		f.looked = time.Now().Add(time.Hour)
		if n := testing.AllocsPerRun(100, func() {
			if !f.Holds(v4) || f.Holds(v6) {
				t.Error("wrong answer")
			}
		}); n != 0 {
			t.Errorf("%s: %v allocations, want none", format, n)
		}
	}
}

// number returns the source with the given number.
func number(n int) netip.Addr {
	return netip.AddrFrom4([4]byte{198, 18 + byte(n>>16), byte(n >> 8), byte(n)})
}

func TestSourcesAreBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "blocked")
	var list []byte
	for n := range maxSources + 2 {
		list = Append(list, conf.BanFilePortSentry2, &logline.Blocked{Source: number(n)})
	}
	write(t, path, string(list))
	f := mustOpen(t, path, conf.BanFilePortSentry2)
	if len(f.warnings) != 1 || !strings.Contains(f.warnings[0].Text, "2 records too many") {
		t.Errorf("warnings %q, want one of two records too many", f.warnings)
	}
	if err := f.Add(blocked(number(0), "")); err != nil {
		t.Errorf("Add of a source that is held: %v", err)
	}
	if err := f.Add(blocked(v6, "")); err == nil || f.Holds(v6) || f.Len() != maxSources {
		t.Errorf("Add to a full list: %v, %d are held", err, f.Len())
	}
	checkFile(t, path, string(list))
}

func TestSizeIsBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "blocked")
	f := mustOpen(t, path, conf.BanFilePortSentry2)
	f.size = maxSize - int64(len(bytes6)) + 1
	if err := f.Add(blocked(v6, "")); err == nil || !strings.Contains(err.Error(), "64 MiB") || !f.Holds(v6) {
		t.Errorf("Add to a file of the largest size: %v", err)
	}
	if err := f.Close(); err == nil || !strings.Contains(err.Error(), "records not written: 1") {
		t.Errorf("Close: %v, want it to tell of a record", err)
	}
	checkFile(t, path, "")
	if err := os.Truncate(path, maxSize+1); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(path, conf.BanFilePortSentry2, nil); err == nil || !strings.Contains(err.Error(), "larger than 64 MiB") {
		t.Errorf("Open of a larger file: %v", err)
	}
}

// A smallDisk is a file system of 64 KiB with next to no room.
type smallDisk struct{ ballast, path string }

func newSmallDisk(t *testing.T) smallDisk {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("small", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatalf("mount a small file system: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	disk := smallDisk{ballast: filepath.Join(dir, "ballast"), path: filepath.Join(dir, "blocked")}
	write(t, disk.ballast, strings.Repeat("x", 48<<10))
	return disk
}

// fill adds sources until there is room for no more records, and returns the
// records of all of them, of which the file has all but the last.
func (d smallDisk) fill(t *testing.T, f *subject) (records []byte) {
	t.Helper()
	for n := 0; ; n++ {
		b := blocked(number(n), "")
		err := f.Add(b)
		if err != nil && !errors.Is(err, unix.ENOSPC) || n > 64<<10 {
			t.Fatalf("Add of source %d: %v", n, err)
		}
		if err != nil {
			checkFile(t, d.path, string(records))
			if f.Len() != n+1 || !f.Holds(b.Source) {
				t.Errorf("%d sources are held, want %d", f.Len(), n+1)
			}
			return Append(records, f.format, &b)
		}
		records = Append(records, f.format, &b)
	}
}

// On a full disk a source is held and its record is not half written. When there
// is room again, the next occasion writes it.
func TestFullDisk(t *testing.T) {
	late := blocked(v6, "")
	for name, test := range map[string]struct {
		then func(f *subject) error
		more int // sources that this brings
	}{
		"another source": {func(f *subject) error { return f.Add(late) }, 1},
		"a flush":        {func(f *subject) error { return f.Flush() }, 0},
		"the end":        {func(f *subject) error { return f.Close() }, 0},
	} {
		for _, format := range []conf.BanFileFormat{conf.BanFilePortSentry2, conf.BanFilePortSentry1} {
			t.Run(name+", "+string(format), func(t *testing.T) {
				disk := newSmallDisk(t)
				f := mustOpen(t, disk.path, format)
				want := disk.fill(t, f)
				held := f.Len()
				if err := f.Flush(); !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), "records not written: 1") {
					t.Errorf("Flush without room: %v", err)
				}
				if err := os.Remove(disk.ballast); err != nil {
					t.Fatal(err)
				}
				if err := test.then(f); err != nil {
					t.Fatal(err)
				}
				for range test.more {
					want = Append(want, format, &late)
				}
				checkFile(t, disk.path, string(want))
				f.looked = time.Time{}
				if !f.Holds(number(held-1)) || f.Len() != held+test.more {
					t.Errorf("%d sources are held, want %d", f.Len(), held+test.more)
				}
			})
		}
	}
}

// However often the file goes and comes while nothing can be written, a source
// waits once to be.
func TestUnwrittenAreBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "blocked.tcp")
	f := mustOpen(t, path, conf.BanFilePortSentry1)
	for range 3 {
		if err := errors.Join(os.RemoveAll(path), os.Mkdir(path, 0o755)); err != nil {
			t.Fatal(err)
		}
		for _, source := range []netip.Addr{v4, v6} {
			_ = f.Add(blocked(source, "")) // the first time it cannot be written
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		f.checkHeld(t, v4, v6)
	}
	if len(f.unwritten) != 2 {
		t.Errorf("%d records wait, want 2", len(f.unwritten))
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	b := blocked(v4, "")
	checkFile(t, path, string(Append(nil, f.format, &b))+line6)
}

// If what is left of a record cannot be cut off at once, it is before the next.
func TestTornRecordIsCutOffLater(t *testing.T) {
	for _, format := range []conf.BanFileFormat{conf.BanFilePortSentry2, conf.BanFilePortSentry1} {
		path := filepath.Join(t.TempDir(), "blocked")
		f := mustOpen(t, path, format)
		mustAdd(t, f, blocked(v4Other, ""))
		if _, err := f.file.WriteString("\x02\x00"); err != nil {
			t.Fatal(err)
		}
		f.torn = true
		f.noteLocked()
		mustAdd(t, f, blocked(v6, ""))
		checkFile(t, path, map[conf.BanFileFormat]string{
			conf.BanFilePortSentry2: bytes4Other + bytes6,
			conf.BanFilePortSentry1: line4Other + line6,
		}[format])
		f.checkHeld(t, v4Other, v6)
	}
}

func BenchmarkHolds(b *testing.B) {
	for _, format := range []conf.BanFileFormat{conf.BanFilePortSentry2, conf.BanFilePortSentry1} {
		b.Run(string(format), func(b *testing.B) {
			f, err := Open(filepath.Join(b.TempDir(), "blocked"), format, nil)
			if err != nil {
				b.Fatal(err)
			}
			defer f.Close()
			if format == conf.BanFilePortSentry2 {
				for n := range 500_000 {
					hold(f.held, number(n))
				}
			}
			b.ReportAllocs()
			for b.Loop() {
				f.Holds(v4)
			}
		})
	}
}

func BenchmarkAdd(b *testing.B) {
	f, err := Open(filepath.Join(b.TempDir(), "blocked"), conf.BanFilePortSentry2, nil)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	b.ReportAllocs()
	for n := 0; b.Loop(); n++ {
		if n == maxSources {
			clear(f.held)
			n = 0
		}
		if err := f.Add(logline.Blocked{Source: number(n)}); err != nil {
			b.Fatal(err)
		}
	}
}
