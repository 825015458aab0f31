package state

import (
	"bytes"
	"errors"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.etcd.io/bbolt"

	"github.com/portsnare/portsnare/detector"
)

// A content is all that a file holds, as text.
func content(t testing.TB, path string) string {
	t.Helper()
	d := open(t, path)
	defer d.Close()
	var all strings.Builder
	bans, err := d.LoadBans()
	check(t, err)
	for _, s := range bans.Sources {
		fmt.Fprintf(&all, "%v %d %v\n", s.Source, s.Offences, s.Since)
	}
	names, err := d.Queues()
	check(t, err)
	for _, name := range names {
		q, err := d.Queue(name, 0)
		check(t, err)
		entries, err := q.Peek(0, 1<<30)
		check(t, err)
		for _, e := range entries {
			fmt.Fprintf(&all, "%s %d %x\n", name, e.Key, e.Data)
		}
	}
	return all.String()
}

// newFile makes a file with trees, free pages, overflow pages and an inline
// bucket, and returns its bytes.
func newFile(t testing.TB, path string) []byte {
	t.Helper()
	d := open(t, path)
	state := detector.BanState{At: at, Whole: true}
	for i := range 400 {
		source := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 32)
		state.Sources = append(state.Sources, detector.Standing{Source: source, Offences: i + 1, Since: at})
	}
	check(t, d.SaveBans(state))
	for _, name := range []string{"slack", "crowdsec", "empty", "small"} {
		q, err := d.Queue(name, 0)
		check(t, err)
		switch name {
		case "small":
			check(t, q.Append(records(0, 2)))
		case "slack", "crowdsec":
			check(t, q.Append(records(0, 500)))
			check(t, q.Append([][]byte{bytes.Repeat([]byte(name), 3000)}))
			check(t, q.Ack(200))
		}
	}
	// The older of the two first pages then says the same as the newer.
	check(t, d.SaveBans(detector.BanState{At: at}))
	check(t, d.SaveBans(detector.BanState{At: at}))
	check(t, d.Close())
	file, err := os.ReadFile(path)
	check(t, err)
	return file
}

// TestKilledAtFirstStart is about a file that bbolt has only just made.
func TestKilledAtFirstStart(t *testing.T) {
	path := newPath(t)
	bolt, err := bbolt.Open(path, 0o600, nil)
	check(t, err)
	check(t, bolt.Close())
	check(t, openQueue(t, open(t, path), 0).Append(records(0, 1)))
}

// TestDamage cuts a file short and turns bits in it, everywhere. What is in it
// must then be what it was, or the file be moved aside.
func TestDamage(t *testing.T) {
	path := newPath(t)
	whole := newFile(t, path)
	want := content(t, path)
	damages := map[string]func([]byte) []byte{
		"text":             func([]byte) []byte { return []byte("# a note\n") },
		"zeros":            func(b []byte) []byte { return make([]byte, len(b)) },
		"lost second half": func(b []byte) []byte { clear(b[len(b)/2:]); return b },
		"absurd page size": func(b []byte) []byte { b[pageHeader+11] = 0x80; mendMetas(b); return b },
		"two page sizes":   func(b []byte) []byte { b[4096+pageHeader+9] = 0x20; mendMetas(b); return b },
	}
	for _, size := range []int{1, 100, 4095, 4096, 8192, 8193, len(whole) / 2, len(whole) - 4096, len(whole) - 1} {
		damages[fmt.Sprintf("cut to %d bytes", size)] = func(b []byte) []byte { return b[:size] }
	}
	random := rand.New(rand.NewPCG(4, 4))
	for range 1000 {
		at, bit := random.IntN(len(whole)), byte(1)<<random.IntN(8)
		if random.IntN(2) == 0 { // the headers and elements of pages more often
			at = at&^4095 + random.IntN(64)
		}
		damages[fmt.Sprintf("byte %d ^ %#x", at, bit)] = func(b []byte) []byte { b[at] ^= bit; return b }
	}
	found := 0
	for name, damage := range damages {
		t.Run(name, func(t *testing.T) {
			if moved := openDamaged(t, damage(bytes.Clone(whole)), want); moved {
				found++
			}
		})
	}
	if found < len(damages)/4 {
		t.Errorf("of %d damages %d were found", len(damages), found)
	}
}

// openDamaged opens a file and reports whether it was moved aside.
func openDamaged(t *testing.T, file []byte, want string) (moved bool) {
	t.Helper()
	path := newPath(t)
	check(t, os.WriteFile(path, file, 0o600))
	var warnings []string
	d, err := Open(path, func(text string) { warnings = append(warnings, text) })
	check(t, err)
	check(t, d.Close())
	aside, err := filepath.Glob(path + ".damaged-*")
	check(t, err)
	switch got := content(t, path); {
	case len(warnings) != len(aside):
		t.Errorf("%q was warned of, but there is %q", warnings, aside)
	case len(aside) == 0 && got != want:
		t.Error("not found, and the content is not what it was")
	case len(aside) == 1:
		if kept, err := os.ReadFile(aside[0]); err != nil || !bytes.Equal(kept, file) {
			t.Errorf("the file that was moved aside has changed (%v)", err)
		}
		if got != "" || !strings.Contains(warnings[0], aside[0]) || !strings.Contains(warnings[0], path+" was damaged (") {
			t.Errorf("%q, and the new file has %q", warnings, got)
		}
	}
	return len(aside) > 0
}

// TestTornWrite has the newest transaction half on the disk: bbolt goes back to
// the one before, and so do we.
func TestTornWrite(t *testing.T) {
	path := newPath(t)
	newFile(t, path)
	d := open(t, path)
	check(t, openQueue(t, d, 0).Append(records(0, 1)))
	check(t, d.Close())
	before := content(t, path)
	d = open(t, path)
	check(t, d.SaveBans(detector.BanState{At: at, Whole: true}))
	newest := transaction(t, d) % 2
	check(t, d.Close())
	file, err := os.ReadFile(path)
	check(t, err)
	clear(file[newest*os.Getpagesize()+pageHeader:][:64])
	check(t, os.WriteFile(path, file, 0o600))
	if after := content(t, path); after != before {
		t.Errorf("got\n%s, want\n%s", after, before)
	}
}

func TestFewDamagedFilesAreKept(t *testing.T) {
	path := newPath(t)
	for i := range keptDamaged + 2 {
		check(t, os.WriteFile(path, fmt.Appendf(nil, "note %d", i), 0o600))
		d, err := Open(path, nil)
		check(t, err)
		check(t, d.Close())
	}
	aside, err := filepath.Glob(path + ".damaged-*")
	check(t, err)
	if len(aside) != keptDamaged {
		t.Fatalf("%q are kept, want %d", aside, keptDamaged)
	}
	if text, err := os.ReadFile(aside[0]); string(text) != "note 2" {
		t.Errorf("the oldest that is kept says %q, %v", text, err)
	}
}

// TestDamagedWhileOpen cuts off a file that is in use.
func TestDamagedWhileOpen(t *testing.T) {
	path := newPath(t)
	newFile(t, path)
	d := open(t, path)
	q := openQueue(t, d, 0)
	check(t, os.Truncate(path, 2*int64(os.Getpagesize())))
	_, err := q.Peek(0, 1000)
	if !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), path) {
		t.Errorf("peek: error %v, want %v and the path", err, ErrDamaged)
	}
	for name, err := range map[string]error{
		"append": q.Append(records(0, 1)), "ack": q.Ack(1), "save": d.SaveBans(detector.BanState{Whole: true, At: at}),
	} {
		if !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: error %v, want %v", name, err, ErrDamaged)
		}
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
}

// FuzzVerify looks for a file that is taken to be sound and that bbolt cannot
// read. Checksums, which a fuzzer would never hit, are mended or do not count.
func FuzzVerify(f *testing.F) {
	path := newPath(f)
	check(f, open(f, path).Close())
	add := func() {
		file, err := os.ReadFile(path)
		check(f, err)
		f.Add(file)
	}
	add()
	d := open(f, path)
	q := openQueue(f, d, 0)
	check(f, q.Append(records(0, 300)))
	check(f, q.Append([][]byte{make([]byte, 5000)}))
	check(f, q.Ack(100))
	check(f, d.Close())
	add()
	f.Fuzz(func(t *testing.T, file []byte) {
		mendMetas(file)
		err := verifyBolt(bytes.NewReader(file), int64(len(file)))
		if err != nil && !strings.Contains(err.Error(), errSeal.Error()) {
			return
		}
		path := newPath(t)
		check(t, os.WriteFile(path, file, 0o600))
		bolt, err := bbolt.Open(path, 0o600, nil)
		check(t, err)
		defer bolt.Close()
		check(t, bolt.View(func(tx *bbolt.Tx) error {
			for err := range tx.Check() {
				if !strings.HasSuffix(err.Error(), "unreachable unfreed") { // a page is wasted
					t.Error(err)
				}
			}
			return nil
		}))
	})
}

// mendMetas makes the checksums of the first two pages right, and their headers,
// at which bbolt looks in a check alone.
func mendMetas(file []byte) {
	for id := range 2 {
		at := id * 4096
		if at+pageHeader+64 > len(file) {
			return
		}
		order.PutUint64(file[at:], uint64(id))
		order.PutUint64(file[at+8:], 4) // the kind, no elements and no overflow
		at += pageHeader
		hash := fnv.New64a()
		hash.Write(file[at:][:56])
		order.PutUint64(file[at+56:], hash.Sum64())
	}
}
