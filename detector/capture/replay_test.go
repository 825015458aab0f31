package capture

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/portsnare/portsnare/detector"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// fixtures returns the paths of the captures that testdata/make-fixtures made.
func fixtures(tb testing.TB) []string {
	tb.Helper()
	classic, err := filepath.Glob("testdata/*.pcap")
	ng, errNG := filepath.Glob("testdata/*.pcapng")
	if err := errors.Join(err, errNG); err != nil || len(classic) == 0 || len(ng) == 0 {
		tb.Fatalf("%d and %d fixtures: %v", len(classic), len(ng), err)
	}
	return append(classic, ng...)
}

func readFixture(tb testing.TB, name string) []byte {
	tb.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

// probeLine writes what the detector sees of a probe in one line.
func probeLine(p *detector.Probe) string {
	flags := "-"
	if p.Proto == detector.TCP {
		flags = ""
		for i, name := range "FSRPAUEC" {
			if p.Header.Flags&(1<<i) != 0 {
				flags += string(name)
			}
		}
	}
	return fmt.Sprintf("%s %s > %s %s %s flags=%s ttl=%d window=%d options=%s interface=%q",
		p.At.Format(time.RFC3339Nano), p.Source, p.Target, p.Proto, p.Technique, flags,
		p.Header.TTL, p.Header.Window, p.IPOptions, p.Interface)
}

// replayed is what a capture gives.
type replayed struct {
	survey *Survey
	probes []detector.Probe
	stats  ReplayStats
	err    error
}

func replay(tb testing.TB, file []byte, local ...netip.Addr) (r replayed) {
	tb.Helper()
	r.survey, r.err = Inspect(tb.Context(), bytes.NewReader(file), local...)
	if r.err != nil {
		return r
	}
	r.stats, r.err = Replay(tb.Context(), bytes.NewReader(file), r.survey, func(p detector.Probe) detector.Decision {
		r.probes = append(r.probes, p)
		return detector.Decision{}
	})
	return r
}

// text returns everything that r says, for a golden file.
func (r *replayed) text() string {
	var b strings.Builder
	for _, addr := range r.survey.Local() {
		fmt.Fprintf(&b, "local %s\n", addr)
	}
	for _, p := range r.probes {
		b.WriteString(probeLine(&p))
		if r.survey.InUse(p.Proto, p.Target) {
			b.WriteString(" in use")
		}
		b.WriteByte('\n')
	}
	fmt.Fprintf(&b, "%d packets, %d probes, %d not probes, %d not local, %v undecoded\n",
		r.stats.Packets, r.stats.Probes, r.stats.NotProbes, r.stats.NotLocal, r.stats.Undecoded)
	return b.String()
}

func TestReplayGolden(t *testing.T) {
	for _, path := range fixtures(t) {
		name := filepath.Base(path)
		t.Run(name, func(t *testing.T) {
			r := replay(t, readFixture(t, name))
			if r.err != nil {
				t.Fatalf("replay: %v", r.err)
			}
			golden := filepath.Join("testdata", name+".golden")
			if *update {
				if err := os.WriteFile(golden, []byte(r.text()), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if diff := cmp.Diff(string(readFixture(t, name+".golden")), r.text()); diff != "" {
				t.Errorf("%s (-want +got):\n%s", golden, diff)
			}
		})
	}
}

// TestReplayVariants: however a capture is written down, it gives the same
// probes.
func TestReplayVariants(t *testing.T) {
	for _, name := range []string{"nmap-sS-ipv4.pcap", "nmap-sU-ipv6.pcap"} {
		file := readFixture(t, name)
		want := replay(t, file)
		records, err := readAll(bytes.NewReader(file))
		if err != nil || len(want.probes) == 0 {
			t.Fatalf("%s: %d probes, %v", name, len(want.probes), err)
		}
		for variant, file := range variants(records) {
			t.Run(name+" as "+variant, func(t *testing.T) {
				got := replay(t, file)
				if got.err != nil {
					t.Fatalf("replay: %v", got.err)
				}
				if diff := cmp.Diff(want.text(), got.text()); diff != "" {
					t.Errorf("-want +got:\n%s", diff)
				}
			})
		}
	}
}

// variants writes records of Ethernet frames in every form that can be read.
func variants(records []record) map[string][]byte {
	le, be := binary.LittleEndian, binary.BigEndian
	files := map[string][]byte{
		"pcap, big endian":       writePcap(be, pcapMicroseconds, linkEthernet, records...),
		"pcap, nanoseconds":      writePcap(le, pcapNanoseconds, linkEthernet, records...),
		"pcap, both":             writePcap(be, pcapNanoseconds, linkEthernet, records...),
		"pcapng, little endian":  writePcapng(le, linkEthernet, "", records...),
		"pcapng, big endian":     writePcapng(be, linkEthernet, "", records...),
		"VLAN":                   writePcap(le, pcapMicroseconds, linkEthernet, tagged(records, 0x8100)...),
		"VLAN within another's":  writePcap(le, pcapMicroseconds, linkEthernet, tagged(tagged(records, 0x8100), 0x88a8)...),
		"BSD loopback, reversed": writePcap(le, pcapMicroseconds, linkNull, reversed(relinked(records, linkNull))...),
	}
	for _, link := range []linkType{linkNull, linkLoop, linkRaw, linkRawBSD, linkSLL, linkSLL2} {
		files[fmt.Sprintf("pcap, link type %d", link)] = writePcap(le, pcapMicroseconds, link, relinked(records, link)...)
		files[fmt.Sprintf("pcapng, link type %d", link)] = writePcapng(be, link, "", relinked(records, link)...)
	}
	return files
}

// relinked returns records of Ethernet frames with another link-layer header.
func relinked(records []record, link linkType) []record {
	var all []record
	for _, rec := range records {
		etherType := binary.BigEndian.Uint16(rec.frame[12:])
		frame := frameOn(link, etherType, rec.frame[14:])
		rec.length += len(frame) - len(rec.frame)
		rec.frame = frame
		all = append(all, rec)
	}
	return all
}

// tagged returns records of Ethernet frames with a VLAN tag.
func tagged(records []record, etherType uint16) []record {
	var all []record
	for _, rec := range records {
		rec.frame = slices.Insert(bytes.Clone(rec.frame), 12, byte(etherType>>8), byte(etherType), 0, 42)
		rec.length += 4
		all = append(all, rec)
	}
	return all
}

// reversed returns records with the first four bytes in the other byte order.
func reversed(records []record) []record {
	for _, rec := range records {
		slices.Reverse(rec.frame[:4])
	}
	return records
}

// TestReplayDamaged: everything before the damage is observed, and then it is
// reported.
func TestReplayDamaged(t *testing.T) {
	whole := readFixture(t, "nmap-sS-ipv4.pcap")
	all := replay(t, whole)
	records, err := readAll(bytes.NewReader(whole))
	if err != nil {
		t.Fatal(err)
	}
	last := len(whole) - len(records[len(records)-1].frame) - 16
	got := replay(t, whole[:len(whole)-1])
	if want := fmt.Sprintf("record %d at byte %d: the file ends within it", len(records), last); got.err == nil || got.err.Error() != want {
		t.Errorf("error %v, want %s", got.err, want)
	}
	if diff := cmp.Diff(all.text(), got.text()); diff == "" || got.stats.Packets != all.stats.Packets-1 {
		t.Errorf("%d packets of %d replayed, want all but the last", got.stats.Packets, all.stats.Packets)
	}
	if !slices.Equal(got.probes, all.probes[:len(got.probes)]) || len(got.probes) < len(all.probes)-1 {
		t.Errorf("%d probes of %d observed", len(got.probes), len(all.probes))
	}
}

// TestReplayMixedLinkTypes: frames of an unsupported link type do not hide the
// others.
func TestReplayMixedLinkTypes(t *testing.T) {
	w := newNg(binary.LittleEndian).section().iface(105).iface(linkRaw)
	syn := string(tcp4(t, detector.SYN))
	w.packet(0, 0, "802.11").packet(1, 0, syn).packet(0, 0, "802.11").packet(1, 0, syn)
	r := replay(t, w.b, target4)
	var unsupported unsupportedLinkType
	if !errors.As(r.err, &unsupported) || unsupported != 105 {
		t.Errorf("error %v, want link type 105 unsupported", r.err)
	}
	if len(r.probes) != 2 || r.stats.Packets != 4 {
		t.Errorf("%d probes of %d packets, want 2 of 4", len(r.probes), r.stats.Packets)
	}
}

// TestReplaySelects shows which packets are probes of the host.
func TestReplaySelects(t *testing.T) {
	sll := func(packetType byte, packet []byte) record {
		frame := patch(frameOn(linkSLL, etherTypeIPv4, packet), 1, packetType)
		return record{at: arrival, frame: frame, length: len(frame)}
	}
	const toUs, toAll, toMany, toAnother, fromUs = 0, 1, 2, 3, 4
	tests := map[string]struct {
		in    record
		local netip.Addr
		want  ReplayStats
	}{
		"SYN":           {in: sll(toUs, tcp4(t, detector.SYN)), local: target4, want: ReplayStats{Probes: 1}},
		"SYN-ACK":       {in: sll(toUs, tcp4(t, detector.SYN|detector.ACK)), local: target4, want: ReplayStats{NotProbes: 1}},
		"to a stranger": {in: sll(toUs, tcp4(t, detector.SYN)), local: scanner4, want: ReplayStats{NotLocal: 1}},
		"sent by us":    {in: sll(fromUs, tcp4(t, detector.SYN)), local: target4, want: ReplayStats{NotLocal: 1}},
		"to all":        {in: sll(toAll, tcp4(t, detector.SYN)), local: target4, want: ReplayStats{NotLocal: 1}},
		"to many":       {in: sll(toMany, tcp4(t, detector.SYN)), local: target4, want: ReplayStats{NotLocal: 1}},
		"on a mirror":   {in: sll(toAnother, tcp4(t, detector.SYN)), local: target4, want: ReplayStats{Probes: 1}},
		"mapped local":  {in: sll(toUs, tcp4(t, detector.SYN)), local: netip.AddrFrom16(target4.As16()), want: ReplayStats{Probes: 1}},
		"wrong checksum": {
			in: sll(toUs, patch(tcp4(t, detector.SYN), 36, 1, 2)), local: target4,
			want: ReplayStats{Undecoded: map[string]uint64{"checksum": 1}},
		},
		"checksum left to the card": {
			in: sll(toUs, append(tcp4(t, 0)[:20:20], withPseudoSum(tcp4(t, detector.SYN))[20:]...)), local: target4,
			want: ReplayStats{Probes: 1},
		},
		"cut within the link layer": {
			in: record{at: arrival, frame: make([]byte, 15), length: 60}, local: target4,
			want: ReplayStats{Undecoded: map[string]uint64{"truncated": 1}},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			r := replay(t, writePcap(binary.LittleEndian, pcapMicroseconds, linkSLL, tt.in), tt.local)
			if r.err != nil {
				t.Fatalf("replay: %v", r.err)
			}
			tt.want.Packets = 1
			if tt.want.Undecoded == nil {
				tt.want.Undecoded = map[string]uint64{}
			}
			if diff := cmp.Diff(tt.want, r.stats); diff != "" {
				t.Errorf("stats (-want +got):\n%s", diff)
			}
		})
	}
}

// endless is a capture without an end.
func endless(t *testing.T) io.Reader {
	syn := tcp4(t, detector.SYN)
	one := writePcap(binary.LittleEndian, pcapMicroseconds, linkRaw, record{at: arrival, frame: syn, length: len(syn)})
	return io.MultiReader(bytes.NewReader(one), readerFunc(func(p []byte) (int, error) { return copy(p, one[24:]), nil }))
}

func TestReplayEndsWithContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	survey := &Survey{local: []netip.Addr{target4}}
	stats, err := Replay(ctx, endless(t), survey, func(detector.Probe) detector.Decision {
		cancel()
		return detector.Decision{}
	})
	if !errors.Is(err, context.Canceled) || stats.Probes != 1 {
		t.Errorf("Replay: %d probes, %v, want 1 and the context's error", stats.Probes, err)
	}
	if _, err := Inspect(ctx, endless(t)); !errors.Is(err, context.Canceled) {
		t.Errorf("Inspect: %v, want the context's error", err)
	}
}

// FuzzReplay takes any bytes for a capture. What comes of them is the same
// each time and no more than the file can hold.
func FuzzReplay(f *testing.F) {
	for _, path := range fixtures(f) {
		f.Add(readFixture(f, filepath.Base(path)))
	}
	records := sampleRecords()
	f.Add(writePcap(binary.BigEndian, pcapNanoseconds, linkEthernet, records...))
	f.Add(writePcapng(binary.BigEndian, linkSLL2, "eth0", records...))
	le := newNg(binary.LittleEndian)
	f.Add(le.section().iface(linkRaw, le.option(9, "\xbf"), le.option(14, "12345678")).
		block(blockSimplePacket, le.u32(1), []byte("a")).block(0x0bad).b)
	f.Fuzz(func(t *testing.T, file []byte) {
		r := replay(t, file)
		if r.survey == nil {
			if r.err == nil {
				t.Fatal("neither a survey nor an error")
			}
			return
		}
		if again := replay(t, file); r.text() != again.text() {
			t.Errorf("replayed twice:\n%s\nand\n%s", r.text(), again.text())
		}
		sum := r.stats.Probes + r.stats.NotProbes + r.stats.NotLocal
		for _, n := range r.stats.Undecoded {
			sum += n
		}
		// The shortest record is a simple packet of pcapng without any bytes.
		if sum != r.stats.Packets || r.stats.Packets > uint64(len(file))/16 || int(r.stats.Probes) != len(r.probes) {
			t.Errorf("%d bytes, %d probes observed: %+v", len(file), len(r.probes), r.stats)
		}
		for _, p := range r.probes {
			if !contains(r.survey.Local(), p.Target.Addr()) || !isProbe(&p) || p.At.Location() != time.UTC {
				t.Errorf("observed %s", probeLine(&p))
			}
		}
	})
}

// BenchmarkReplay is the whole way from a file to probes, per record.
func BenchmarkReplay(b *testing.B) {
	syn := tcp4(b, detector.SYN)
	records := slices.Repeat([]record{{at: arrival, frame: syn, length: len(syn)}}, 10_000)
	file := writePcap(binary.LittleEndian, pcapMicroseconds, linkRaw, records...)
	survey := &Survey{local: []netip.Addr{target4}}
	b.ReportAllocs()
	for b.Loop() {
		stats, err := Replay(b.Context(), bytes.NewReader(file), survey, func(detector.Probe) detector.Decision { return detector.Decision{} })
		if err != nil || stats.Probes != uint64(len(records)) {
			b.Fatal(stats, err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(records)), "ns/record")
}
