package state

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"github.com/portsnare/portsnare/detector"
	"github.com/portsnare/portsnare/internal/nettest"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func TestMain(m *testing.M) {
	if path := os.Getenv(writerVariable); path != "" {
		writeForEver(path)
	}
	nettest.Main(m)
}

var at = time.Date(2026, 11, 22, 7, 44, 33, 659_000_000, time.UTC)

// newPath returns where a test may keep its state, in the memory that /run is.
func newPath(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/run", "state") //nolint:usetesting // a disk would take long
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { check(t, os.RemoveAll(dir)) })
	return filepath.Join(dir, "state.db")
}

// open opens a file that must be sound.
func open(t testing.TB, path string) *DB {
	t.Helper()
	d, err := Open(path, func(text string) { t.Error(text) })
	if err != nil {
		t.Fatal(err)
	}
	d.pause = 0
	t.Cleanup(func() { d.Close() })
	return d
}

func openQueue(t testing.TB, d *DB, limit int64) *Queue {
	t.Helper()
	q, err := d.Queue("slack", limit)
	if err != nil {
		t.Fatal(err)
	}
	return q
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// records returns records that say their number, from one up to another.
func records(from, to int) [][]byte {
	var list [][]byte
	for i := from; i < to; i++ {
		list = append(list, fmt.Appendf(nil, "record %d", i))
	}
	return list
}

// peek returns all that is in a queue.
func peek(t testing.TB, q *Queue) [][]byte {
	t.Helper()
	entries, err := q.Peek(0, 1<<30)
	check(t, err)
	var list [][]byte
	for _, e := range entries {
		list = append(list, e.Data)
	}
	return list
}

func wantRecords(t testing.TB, q *Queue, want [][]byte) {
	t.Helper()
	if diff := cmp.Diff(want, peek(t, q)); diff != "" {
		t.Errorf("queue (-want +got)\n%s", diff)
	}
	if n := q.Stats().Entries; n != len(want) {
		t.Errorf("%d entries by the statistics, want %d", n, len(want))
	}
}

// standings returns everything that can be known of a source, and less.
func standings() []detector.Standing {
	source := netip.MustParsePrefix
	full := detector.Ban{
		Source: source("203.0.113.7/32"), Until: at.Add(time.Hour), Evidence: detector.ProvenTrap,
		Reason: "probe to a trap port", Origin: "portsnare",
		Probe: detector.Probe{
			At:     at,
			Source: netip.MustParseAddrPort("203.0.113.7:40000"), Target: netip.MustParseAddrPort("192.0.2.1:23"),
			Proto: detector.TCP, Technique: detector.TechniqueSYN,
			Header:    detector.HeaderFacts{Flags: detector.SYN, TTL: 52, Window: 1024, IPID: 7, Sequence: 1 << 31},
			IPOptions: detector.False, Proof: detector.ProofHandshake, Interface: "eth0",
		},
	}
	forever := detector.Ban{Source: source("2001:db8::/32"), Origin: "operator", Reason: "asked for"}
	return []detector.Standing{
		{Source: source("198.51.100.1/32"), Offences: 2, Since: at.Add(-time.Hour)},
		{Source: full.Source, Ban: &full, Offences: 3, Since: full.Until, Grace: at.Add(time.Minute)},
		{Source: forever.Source, Ban: &forever},
	}
}

var compareStates = cmpopts.EquateComparable(netip.Prefix{}, netip.AddrPort{})

func wantBans(t testing.TB, d *DB, want detector.BanState) {
	t.Helper()
	got, err := d.LoadBans()
	check(t, err)
	if diff := cmp.Diff(want, got, compareStates, cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("bans (-want +got)\n%s", diff)
	}
}

func TestBans(t *testing.T) {
	path := newPath(t)
	d := open(t, path)
	wantBans(t, d, detector.BanState{Whole: true})
	whole := detector.BanState{At: at, Whole: true, Sources: standings()}
	check(t, d.SaveBans(whole))
	wantBans(t, d, whole)

	gone := detector.Standing{Source: whole.Sources[0].Source}
	fewer := detector.Standing{Source: whole.Sources[1].Source, Offences: 1, Since: at}
	check(t, d.SaveBans(detector.BanState{At: at.Add(time.Minute), Sources: []detector.Standing{gone, fewer}}))
	check(t, d.Close())
	d = open(t, path)
	want := detector.BanState{
		At: at.Add(time.Minute), Whole: true, Sources: []detector.Standing{fewer, whole.Sources[2]},
	}
	wantBans(t, d, want)

	want.Sources = want.Sources[:1]
	check(t, d.SaveBans(want))
	wantBans(t, d, want)
}

// TestBansOverRestart takes bans through a file.
func TestBansOverRestart(t *testing.T) {
	path, source := newPath(t), netip.MustParsePrefix("203.0.113.7/32")
	d, before := open(t, path), detector.NewBans(detector.BanPolicy{})
	ban, err := before.Want(detector.Ban{Source: source}, at)
	check(t, err)
	before.Confirm(source, at)
	check(t, d.SaveBans(before.Changes(at)))
	check(t, d.Close())

	saved, err := open(t, path).LoadBans()
	check(t, err)
	after, later := detector.NewBans(detector.BanPolicy{}), at.Add(20*time.Minute)
	if left := after.Restore(saved, later); left != 0 {
		t.Errorf("%d left out", left)
	}
	if got, held := after.Holds(source.Addr(), later); !held || !got.Until.Equal(ban.Until) {
		t.Errorf("held %v until %v, want until %v", held, got.Until, ban.Until)
	}
	ended := after.Expire(ban.Until)
	again, err := after.Want(detector.Ban{Source: source}, ban.Until)
	if len(ended) != 1 || err != nil || again.Until.Sub(ban.Until) != 2*time.Hour {
		t.Errorf("%v ended; the next lasts until %v (%v), want two hours", ended, again.Until, err)
	}
}

// TestStoredForm holds the form of bans in the file, which later versions have to
// read.
func TestStoredForm(t *testing.T) {
	var got bytes.Buffer
	for _, s := range standings() {
		data, err := json.Marshal(toStored(&s))
		check(t, err)
		fmt.Fprintf(&got, "%v %s\n", s.Source, data)
	}
	const golden = "testdata/standings.golden"
	if *update {
		check(t, os.WriteFile(golden, got.Bytes(), 0o644))
	}
	want, err := os.ReadFile(golden)
	check(t, err)
	if diff := cmp.Diff(string(want), got.String()); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestQueue(t *testing.T) {
	path := newPath(t)
	d := open(t, path)
	q := openQueue(t, d, 0)
	wantRecords(t, q, nil)
	check(t, q.Append(records(0, 4)))
	check(t, q.Append(append(records(4, 5), nil, []byte{})))
	want := append(records(0, 5), []byte{}, []byte{})
	wantRecords(t, q, want)

	first, err := q.Peek(0, 3)
	check(t, err)
	rest, err := q.Peek(first[2].Key, 100)
	check(t, err)
	if len(first) != 3 || len(rest) != 4 || string(rest[0].Data) != "record 3" {
		t.Fatalf("got %d entries and then %v", len(first), rest)
	}
	check(t, q.Ack(first[1].Key))
	check(t, q.Ack(first[0].Key)) // again
	check(t, q.Ack(0))
	wantRecords(t, q, want[2:])

	check(t, d.Close())
	d = open(t, path)
	q = openQueue(t, d, 0)
	wantRecords(t, q, want[2:])
	check(t, q.Ack(1<<63))
	wantRecords(t, q, nil)
	if stats := q.Stats(); stats != (QueueStats{}) {
		t.Errorf("%+v, want nothing", stats)
	}
	check(t, q.Append(records(9, 10)))
	wantRecords(t, q, records(9, 10))
}

func TestQueueNames(t *testing.T) {
	d := open(t, newPath(t))
	for _, name := range []string{"slack", "crowdsec"} {
		q, err := d.Queue(name, 0)
		check(t, err)
		check(t, q.Append(records(0, 1)))
		if again, err := d.Queue(name, 0); again != q || err != nil {
			t.Errorf("%s is opened as %p and again as %p, %v", name, q, again, err)
		}
	}
	removed := openQueue(t, d, 0)
	check(t, d.RemoveQueue("slack"))
	if _, err := removed.Peek(0, 1); !errors.Is(err, errRemoved) || !errors.Is(removed.Append(records(0, 1)), errRemoved) {
		t.Errorf("a queue that was removed can be used: %v", err)
	}
	check(t, d.RemoveQueue("never there"))
	if names, err := d.Queues(); err != nil || strings.Join(names, " ") != "crowdsec" {
		t.Errorf("queues are %q, %v", names, err)
	}
	wantRecords(t, openQueue(t, d, 0), nil)
}

// TestQueueBounded puts ten times as much into a queue as it may hold.
func TestQueueBounded(t *testing.T) {
	const limit, size, each = 1 << 20, 500, 100
	path := newPath(t)
	d := open(t, path)
	q := openQueue(t, d, limit)
	sent := 0
	for range 10 * limit / size / each {
		var list [][]byte
		for range each {
			list = append(list, fmt.Appendf(nil, "%*d", size, sent))
			sent++
		}
		check(t, q.Append(list))
		if stats := q.Stats(); stats.Bytes > limit || stats.Dropped+uint64(stats.Entries) != uint64(sent) {
			t.Fatalf("%+v of %d, want at most %d bytes and all accounted for", stats, sent, limit)
		}
	}
	kept := peek(t, q)
	if oldest := fmt.Sprintf("%*d", size, sent-len(kept)); string(kept[0]) != oldest || len(kept) < limit/size*9/10 {
		t.Errorf("%d records are left, the oldest %q", len(kept), bytes.TrimSpace(kept[0]))
	}
	info, err := os.Stat(path)
	check(t, err)
	if info.Size() > 2*limit {
		t.Errorf("the file has %d bytes for a queue of %d", info.Size(), limit)
	}
	if err := q.Append([][]byte{make([]byte, limit)}); !errors.Is(err, ErrTooLarge) {
		t.Errorf("error %v, want %v", err, ErrTooLarge)
	}

	check(t, d.Close())
	q = openQueue(t, open(t, path), limit/2) // the configuration has changed
	check(t, q.Append(records(0, 1)))
	if stats := q.Stats(); stats.Bytes > limit/2 {
		t.Errorf("%+v, want at most %d bytes", stats, limit/2)
	}
}

// TestCommitTogether has many outputs append at once, and counts how often that
// was written.
func TestCommitTogether(t *testing.T) {
	const outputs, each = 8, 20
	d := open(t, newPath(t))
	d.pause = commitInterval
	var queues [outputs]*Queue
	for i := range queues {
		var err error
		queues[i], err = d.Queue(strconv.Itoa(i), 0)
		check(t, err)
	}
	before := transaction(t, d)
	var all sync.WaitGroup
	for _, q := range queues {
		all.Go(func() {
			for i := range each {
				if err := q.Append(records(i, i+1)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	for _, q := range queues {
		wantRecords(t, q, records(0, each))
	}
	if commits := transaction(t, d) - before; commits > 2*each {
		t.Errorf("%d commits for %d appends by each of %d outputs", commits, each, outputs)
	}
}

func transaction(t *testing.T, d *DB) (id int) {
	t.Helper()
	check(t, d.view(func(tx *bbolt.Tx) error {
		id = tx.ID()
		return nil
	}))
	return id
}

// TestSharedQueue has appends and acknowledgements of one queue meet in batches.
func TestSharedQueue(t *testing.T) {
	const total = 300
	q := openQueue(t, open(t, newPath(t)), 0)
	var all sync.WaitGroup
	for i := range 3 {
		all.Go(func() {
			for range total / 3 / 10 {
				if err := q.Append(records(i*10, i*10+10)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	got := 0
	for after := uint64(0); got < total; {
		entries, err := q.Peek(after, 50)
		check(t, err)
		for _, e := range entries {
			if e.Key != after+1 {
				t.Fatalf("key %d after %d", e.Key, after)
			}
			after = e.Key
		}
		got += len(entries)
		check(t, q.Ack(after))
	}
	all.Wait()
	if stats := q.Stats(); stats != (QueueStats{}) {
		t.Errorf("%+v, want nothing left", stats)
	}
}

func TestInUse(t *testing.T) {
	path := newPath(t)
	d := open(t, path)
	_, err := Open(path, nil)
	if !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), path) {
		t.Errorf("error %v, want %v and the path", err, ErrInUse)
	}
	check(t, d.Close())
	open(t, path)
}

func TestNoFile(t *testing.T) {
	if _, err := Open("/run", nil); !errors.Is(err, syscall.EISDIR) {
		t.Errorf("error %v, want %v", err, syscall.EISDIR)
	}
	path := filepath.Join(filepath.Dir(newPath(t)), "a/b/state.db")
	open(t, path)
	for name, want := range map[string]os.FileMode{path: 0o600, filepath.Dir(path): 0o700 | os.ModeDir} {
		if info, err := os.Stat(name); err != nil || info.Mode() != want {
			t.Errorf("%s: %v, %v; want mode %v", name, info.Mode(), err, want)
		}
	}
	if err := open(t, newPath(t)).Close(); err != nil {
		t.Error(err)
	}
}

func TestNewerSchema(t *testing.T) {
	path := newPath(t)
	d := open(t, path)
	check(t, d.bolt.Update(func(tx *bbolt.Tx) error {
		if err := tx.Bucket(bansBucket).Put([]byte("key"), []byte("sealed in a way of later days")); err != nil {
			return err
		}
		return put(tx.Bucket(metaBucket), schemaKey, []byte("2"))
	}))
	check(t, d.Close())
	before, err := os.ReadFile(path)
	check(t, err)
	_, err = Open(path, nil)
	if !errors.Is(err, ErrNewer) {
		t.Fatalf("error %v, want %v", err, ErrNewer)
	}
	want := "state file " + path + ": schema 2: written by a newer Portsnare; install that again, or move the file away to begin anew"
	if err.Error() != want {
		t.Errorf("error\n%s, want\n%s", err, want)
	}
	after, err := os.ReadFile(path)
	check(t, err)
	if files, _ := filepath.Glob(path + "*"); !bytes.Equal(before, after) || len(files) != 1 {
		t.Errorf("the file was changed, or moved: %q", files)
	}
}

func TestDiskFull(t *testing.T) {
	dir := filepath.Dir(newPath(t))
	check(t, unix.Mount("small", dir, "tmpfs", 0, "size=2m"))
	t.Cleanup(func() { check(t, unix.Unmount(dir, unix.MNT_DETACH)) })
	d := open(t, filepath.Join(dir, "state.db"))
	q := openQueue(t, d, 0)
	stored := 0
	var err error
	for err == nil && stored < 1000 {
		if err = q.Append([][]byte{bytes.Repeat([]byte{byte(stored)}, 100_000)}); err == nil {
			stored++
		}
	}
	if !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), "state.db") {
		t.Fatalf("after %d records: error %v, want %v and the file's name", stored, err, syscall.ENOSPC)
	}
	if got := len(peek(t, q)); got != stored || q.Stats().Entries != stored {
		t.Errorf("%d records are left of %d", got, stored)
	}

	check(t, unix.Mount("", dir, "", unix.MS_REMOUNT, "size=8m"))
	check(t, q.Append([][]byte{make([]byte, 100_000)}))
	check(t, q.Ack(uint64(stored)))
	check(t, q.Append(records(0, 1)))
	check(t, d.Close())
	if got := len(peek(t, openQueue(t, open(t, d.path), 0))); got != 2 {
		t.Errorf("%d records are left, want 2", got)
	}
}

const writerVariable = "PORTSNARE_STATE_WRITER"

// writeForEver appends records to a queue until it is killed, acknowledges them
// a hundred later, and prints what it has been promised.
func writeForEver(path string) {
	d, err := Open(path, nil)
	if err != nil {
		panic(err)
	}
	d.pause = 0
	q, err := d.Queue("slack", 0)
	if err != nil {
		panic(err)
	}
	next := 0
	if entries, err := q.Peek(0, 1<<30); err != nil {
		panic(err)
	} else if len(entries) > 0 {
		next = number(string(entries[len(entries)-1].Data), "record ", 0) + 1
	}
	var all sync.WaitGroup
	fmt.Println("begun", next)
	appended := make(chan int, 1)
	all.Go(func() {
		for ; ; next += 7 {
			if err := q.Append(records(next, next+7)); err != nil {
				panic(err)
			}
			fmt.Println("stored", next+7)
			select {
			case appended <- next:
			default:
			}
		}
	})
	for range appended {
		entries, err := q.Peek(0, 1<<30)
		if err != nil {
			panic(err)
		}
		if n := len(entries) - 100; n > 0 {
			if err := q.Ack(entries[n-1].Key); err != nil {
				panic(err)
			}
			fmt.Println("gone", string(entries[n-1].Data[len("record "):]))
		}
	}
}

// number returns the number behind a prefix, or what it was.
func number(text, prefix string, was int) int {
	if n, err := strconv.Atoi(strings.TrimPrefix(text, prefix)); err == nil {
		return n
	}
	return was
}

// TestKilled kills a writer again and again, and looks whether what it was
// promised holds.
func TestKilled(t *testing.T) {
	path := newPath(t)
	acknowledged := 0
	for round := range 8 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), writerVariable+"="+path)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		stdout, err := cmd.StdoutPipe()
		check(t, err)
		check(t, cmd.Start())
		var stored, gone int
		lines := bufio.NewScanner(stdout)
		for n := 0; lines.Scan(); n++ {
			stored = number(lines.Text(), "stored ", stored)
			gone = number(lines.Text(), "gone ", gone)
			if n == 100+round { // the last lines are read when it is dead
				check(t, cmd.Process.Kill())
			}
		}
		if err := cmd.Wait(); err == nil || stderr.Len() > 0 {
			t.Fatalf("the writer ended by %v: %s", err, &stderr)
		}

		d := open(t, path)
		left := peek(t, openQueue(t, d, 0))
		check(t, d.Close())
		if len(left) == 0 {
			t.Fatalf("round %d: nothing is left", round)
		}
		first := number(string(left[0]), "record ", -1)
		if diff := cmp.Diff(records(first, first+len(left)), left); diff != "" {
			t.Fatalf("round %d: a gap (-want +got)\n%s", round, diff)
		}
		if last := first + len(left); last < stored || (last-stored)%7 != 0 {
			t.Errorf("round %d: stored up to %d, but %d is the last, or part of a batch", round, stored, last)
		}
		if gone > 0 && first <= gone {
			t.Errorf("round %d: %d was acknowledged, but %d is left", round, gone, first)
		}
		acknowledged = max(acknowledged, gone)
	}
	if acknowledged == 0 {
		t.Error("nothing was acknowledged: this proves little")
	}
}

func BenchmarkQueue(b *testing.B) {
	const events, size, each = 100_000, 300, 256
	b.Run("append", func(b *testing.B) {
		for b.Loop() {
			d := open(b, filepath.Join(b.TempDir(), "state.db"))
			d.pause = commitInterval
			q := openQueue(b, d, 0)
			for sent := 0; sent < events; sent += each {
				var list [][]byte
				for range each {
					list = append(list, make([]byte, size))
				}
				check(b, q.Append(list))
			}
		}
		b.ReportMetric(float64(events*b.N)/b.Elapsed().Seconds(), "events/s")
	})
	b.Run("peek and ack", func(b *testing.B) {
		for b.Loop() {
			b.StopTimer()
			d := open(b, filepath.Join(b.TempDir(), "state.db"))
			d.pause = commitInterval
			q := openQueue(b, d, 0)
			var list [][]byte
			for range events {
				list = append(list, make([]byte, size))
			}
			check(b, q.Append(list))
			b.StartTimer()
			for {
				entries, err := q.Peek(0, 1000)
				check(b, err)
				if len(entries) == 0 {
					break
				}
				check(b, q.Ack(entries[len(entries)-1].Key))
			}
		}
		b.ReportMetric(float64(events*b.N)/b.Elapsed().Seconds(), "events/s")
	})
}

func BenchmarkBans(b *testing.B) {
	whole := detector.BanState{At: at, Whole: true}
	for i := range 100_000 {
		s := standings()[1]
		s.Source = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 32)
		whole.Sources = append(whole.Sources, s)
	}
	path := filepath.Join(b.TempDir(), "state.db")
	d := open(b, path)
	b.Run("save 100000", func(b *testing.B) {
		for b.Loop() {
			check(b, d.SaveBans(whole))
		}
	})
	check(b, d.Close())
	b.Run("open", func(b *testing.B) {
		for b.Loop() {
			check(b, open(b, path).Close())
		}
	})
	d = open(b, path)
	b.Run("load 100000", func(b *testing.B) {
		for b.Loop() {
			if s, err := d.LoadBans(); err != nil || len(s.Sources) != len(whole.Sources) {
				b.Fatal(len(s.Sources), err)
			}
		}
	})
}
