package capture

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/google/gopacket/pcapgo"
)

// ngWriter writes pcapng, right or wrong.
type ngWriter struct {
	order byteOrder
	b     []byte
}

func (w *ngWriter) u16(values ...uint16) (b []byte) {
	for _, v := range values {
		b = w.order.AppendUint16(b, v)
	}
	return b
}

func (w *ngWriter) u32(values ...uint32) (b []byte) {
	for _, v := range values {
		b = w.order.AppendUint32(b, v)
	}
	return b
}

// block appends a block whose body is parts, padded.
func (w *ngWriter) block(kind uint32, parts ...[]byte) *ngWriter {
	body := bytes.Join(parts, nil)
	body = append(body, make([]byte, -len(body)&3)...)
	length := w.u32(uint32(len(body) + 12))
	w.b = bytes.Join([][]byte{w.b, w.u32(kind), length, body, length}, nil)
	return w
}

func (w *ngWriter) section(options ...[]byte) *ngWriter {
	return w.block(blockSection, w.u32(0x1a2b3c4d), w.u16(1, 0), w.u32(0xffffffff, 0xffffffff), bytes.Join(options, nil))
}

func (w *ngWriter) iface(link linkType, options ...[]byte) *ngWriter {
	return w.block(blockInterface, w.u16(uint16(link), 0), w.u32(0), bytes.Join(options, nil))
}

func (w *ngWriter) option(code uint16, value string) []byte {
	b := append(w.u16(code, uint16(len(value))), value...)
	return append(b, make([]byte, -len(value)&3)...)
}

func (w *ngWriter) packet(iface uint32, stamp uint64, frame string) *ngWriter {
	n := uint32(len(frame))
	return w.block(blockEnhancedPacket, w.u32(iface, uint32(stamp>>32), uint32(stamp), n, n), []byte(frame))
}

func newNg(order byteOrder) *ngWriter { return &ngWriter{order: order} }

// writePcapng returns records as pcapng with nanoseconds and one interface of
// the given name.
func writePcapng(order byteOrder, link linkType, name string, records ...record) []byte {
	w := newNg(order)
	w.section(w.option(4, "a test"), w.option(0, "")).
		iface(link, w.option(2, name), w.option(9, "\x09"), w.option(0, ""))
	for _, rec := range records {
		stamp := uint64(rec.at.UnixNano())
		w.block(blockEnhancedPacket,
			w.u32(0, uint32(stamp>>32), uint32(stamp), uint32(len(rec.frame)), uint32(rec.length)), rec.frame)
	}
	return w.b
}

func TestReadPcapng(t *testing.T) {
	for _, order := range []byteOrder{binary.LittleEndian, binary.BigEndian} {
		t.Run(order.String(), func(t *testing.T) {
			want := sampleRecords()
			for i := range want {
				want[i].iface = "eth0"
			}
			got, err := readAll(bytes.NewReader(writePcapng(order, linkEthernet, "eth0", want...)))
			if err != nil {
				t.Fatalf("read: %v", err)
			}
			if diff := diffRecords(got, want); diff != "" {
				t.Errorf("records (-want +got):\n%s", diff)
			}
		})
	}
}

// TestReadForeignPcapng reads what gopacket's writer wrote.
func TestReadForeignPcapng(t *testing.T) {
	want := sampleRecords()
	var file bytes.Buffer
	intf := pcapgo.NgInterface{Name: "eth0", LinkType: layers.LinkTypeEthernet, TimestampResolution: 9}
	w, err := pcapgo.NewNgWriterInterface(&file, intf, pcapgo.DefaultNgWriterOptions)
	if err != nil {
		t.Fatal(err)
	}
	for i, rec := range want {
		want[i].iface = "eth0"
		info := gopacket.CaptureInfo{Timestamp: rec.at, CaptureLength: len(rec.frame), Length: rec.length}
		if err := w.WritePacket(info, rec.frame); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	got, err := readAll(&file)
	if err != nil {
		t.Fatalf("read: %v", err)
	}
	if diff := diffRecords(got, want); diff != "" {
		t.Errorf("records (-want +got):\n%s", diff)
	}
}

// TestPcapngBlocks shows what becomes of each kind of block, as the time, the
// interface and the bytes of every packet.
func TestPcapngBlocks(t *testing.T) {
	le, be := newNg(binary.LittleEndian), newNg(binary.BigEndian)
	const unknown = 0x0bad
	tests := map[string]struct {
		in   []byte
		want []string
	}{
		"no packets": {in: newNg(le.order).section().b},
		"default resolution, interface without name": {
			in:   newNg(le.order).section().iface(linkEthernet).packet(0, 1_500_000, "a").b,
			want: []string{`00:00:01.5 "" a`},
		},
		"resolutions of their own": {
			in: newNg(le.order).section().
				iface(linkEthernet, le.option(9, "\x00")).
				iface(linkEthernet, le.option(9, "\x0c")).
				iface(linkEthernet, le.option(9, "\x8a")).
				iface(linkEthernet, le.option(9, "\xbf")).
				packet(0, 7, "seconds").packet(1, 7_000_000_500_999, "picoseconds").
				packet(2, 7<<10|512, "1/1024").packet(3, 1<<63|1<<62, "2^-63").b,
			want: []string{`00:00:07 "" seconds`, `00:00:07.0000005 "" picoseconds`, `00:00:07.5 "" 1/1024`, `00:00:01.5 "" 2^-63`},
		},
		"time offset": {
			in: newNg(be.order).section().
				iface(linkEthernet, be.option(14, "\x00\x00\x00\x00\x00\x00\x00\x3c"), be.option(0, "")).
				iface(linkEthernet, be.option(14, "\xff\xff\xff\xff\xff\xff\xff\xff"), be.option(0, "")).
				packet(0, 1_000_000, "a").packet(1, 1_000_000, "b").b,
			want: []string{`00:01:01 "" a`, `00:00:00 "" b`},
		},
		"options after the end do not count": {
			in: newNg(le.order).section().
				iface(linkEthernet, le.option(2, "lo"), le.option(0, ""), le.option(2, "eth0")).packet(0, 0, "a").b,
			want: []string{`00:00:00 "lo" a`},
		},
		"two sections, two byte orders, interfaces anew": {
			in: append(
				newNg(le.order).section().iface(linkEthernet, le.option(2, "eth0")).packet(0, 0, "a").b,
				newNg(be.order).section().iface(linkEthernet, be.option(2, "eth1")).packet(0, 0, "b").b...),
			want: []string{`00:00:00 "eth0" a`, `00:00:00 "eth1" b`},
		},
		"other blocks are passed over, however long": {
			in: newNg(le.order).section().block(unknown).iface(linkEthernet).
				block(unknown, make([]byte, 2*maxRecord)).packet(0, 0, "a").b,
			want: []string{`00:00:00 "" a`},
		},
		"obsolete packet block": {
			in: newNg(le.order).section().iface(linkEthernet).
				block(blockPacket, le.u16(0, 0xffff), le.u32(0, 2_000_000, 1, 1), []byte("a")).b,
			want: []string{`00:00:02 "" a`},
		},
		"simple packets have the time of the one before": {
			in: newNg(le.order).section().iface(linkEthernet).block(blockSimplePacket, le.u32(1), []byte("a")).
				packet(0, 3_000_000, "b").block(blockSimplePacket, le.u32(1), []byte("c")).b,
			want: []string{`00:00:00 "" a`, `00:00:03 "" b`, `00:00:03 "" c`},
		},
		"simple packet, cut to the snapshot length": {
			in: newNg(le.order).section().block(blockInterface, le.u16(1, 0), le.u32(2)).
				block(blockSimplePacket, le.u32(9), []byte("ab")).b,
			want: []string{`00:00:00 "" ab`},
		},
		"interface names that could forge a log line": {
			in: newNg(le.order).section().
				iface(linkEthernet, le.option(2, "eth0 attackalert: Block")).
				iface(linkEthernet, le.option(2, "e\nth0")).
				iface(linkEthernet, le.option(2, strings.Repeat("e", 300))).
				iface(linkEthernet, le.option(2, "eth0\x00")).
				iface(linkEthernet, le.option(2, `\Device\NPF_{00000000-0000-0000-0000-000000000000}`)).
				packet(0, 0, "a").packet(1, 0, "b").packet(2, 0, "c").packet(3, 0, "d").packet(4, 0, "e").b,
			want: []string{
				`00:00:00 "" a`, `00:00:00 "" b`, `00:00:00 "" c`, `00:00:00 "eth0" d`,
				`00:00:00 "\\Device\\NPF_{00000000-0000-0000-0000-000000000000}" e`,
			},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			records, err := readAll(bytes.NewReader(tt.in))
			if err != nil {
				t.Fatalf("read: %v", err)
			}
			var got []string
			for _, rec := range records {
				got = append(got, fmt.Sprintf("%s %q %s", rec.at.Format("15:04:05.999999999"), rec.iface, rec.frame))
			}
			if g, w := strings.Join(got, "\n"), strings.Join(tt.want, "\n"); g != w {
				t.Errorf("got\n%s\nwant\n%s", g, w)
			}
		})
	}
}

func TestPcapngDamage(t *testing.T) {
	le := newNg(binary.LittleEndian)
	// Each case adds a block after 28 + 20 + 36 bytes and one packet.
	good := func() *ngWriter { return newNg(le.order).section().iface(linkEthernet).packet(0, 0, "a") }
	const start = 84
	tests := map[string]struct {
		in   []byte
		want string
	}{
		"cut within a block":        {in: good().packet(0, 0, "b").b[:start+30], want: "the file ends within it"},
		"cut within a block header": {in: good().packet(0, 0, "b").b[:start+7], want: "the file ends within it"},
		"cut within another block":  {in: good().block(0x0bad, make([]byte, 400)).b[:start+200], want: "the file ends within it"},
		"length too short":          {in: append(good().b, le.u32(6, 8, 8)...), want: "no block is 8 bytes long"},
		"length of zero":            {in: append(good().b, le.u32(6, 0, 0)...), want: "no block is 0 bytes long"},
		"length not padded":         {in: append(good().b, le.u32(6, 33, 0)...), want: "no block is 33 bytes long"},
		"absurd length": {
			in:   append(good().b, le.u32(6, 0xfffffffc, 0)...),
			want: "its length of 4294967292 bytes is absurd; the longest read is 1048576",
		},
		"absurd length of another block": {
			in:   append(good().b, le.u32(0x0bad, 0xfffffffc, 0)...),
			want: "the file ends within it",
		},
		"lengths differ":          {in: append(good().b, le.u32(6, 12, 16)...), want: "the block's two lengths, 12 and 16, differ"},
		"lengths differ, ignored": {in: append(good().b, le.u32(0x0bad, 12, 16)...), want: "the block's two lengths, 12 and 16, differ"},
		"empty packet block":      {in: good().block(blockEnhancedPacket).b, want: errShortBlock.Error()},
		"empty simple block":      {in: good().block(blockSimplePacket).b, want: errShortBlock.Error()},
		"empty interface block":   {in: good().block(blockInterface).b, want: errShortBlock.Error()},
		"empty section block": {
			in:   append(good().b, le.u32(blockSection, 12, 0x1a2b3c4d)...),
			want: "the block's two lengths, 12 and 439041101, differ",
		},
		"short section block": {in: good().block(blockSection, le.u32(0x1a2b3c4d, 1)).b, want: errShortBlock.Error()},
		"unknown byte order":  {in: good().block(blockSection, le.u32(0x1a2b3c4e)).b, want: "the section states no known byte order"},
		"next version": {
			in:   good().block(blockSection, le.u32(0x1a2b3c4d, 2, 0, 0)).b,
			want: "pcapng version 2.0 is not supported, only 1 is",
		},
		"interface not described":         {in: good().packet(1, 0, "b").b, want: "interface 1 is not described"},
		"absurd interface":                {in: good().packet(1<<32-1, 0, "b").b, want: "interface 4294967295 is not described"},
		"interface of an earlier section": {in: good().section().packet(0, 0, "b").b, want: "interface 0 is not described"},
		"frame beyond its block": {
			in:   good().block(blockEnhancedPacket, le.u32(0, 0, 0, 5, 5), []byte("four")).b,
			want: "the packet's 5 bytes reach beyond its block",
		},
		"option beyond its block":     {in: good().iface(linkEthernet, le.u16(2, 9)).b, want: "option 2 reaches beyond its block"},
		"empty time resolution":       {in: good().iface(linkEthernet, le.option(9, "")).b, want: "option 9 cannot be 0 bytes long"},
		"short time offset":           {in: good().iface(linkEthernet, le.option(14, "\x01")).b, want: "option 14 cannot be 1 bytes long"},
		"time resolution of 10^-20":   {in: good().iface(1, le.option(9, "\x14")).packet(1, 1, "b").b, want: "the interface's time resolution is absurd"},
		"time resolution of 2^-64":    {in: good().iface(1, le.option(9, "\xc0")).packet(1, 1, "b").b, want: "the interface's time resolution is absurd"},
		"time beyond the year 9999":   {in: good().iface(1, le.option(9, "\x00")).packet(1, 1<<63, "b").b, want: errAbsurdTime.Error()},
		"time before 1970":            {in: good().iface(1, le.option(14, "\xff\xff\xff\xff\xff\xff\xff\xff")).packet(1, 1, "b").b, want: errAbsurdTime.Error()},
		"time offset that overflows":  {in: good().iface(1, le.option(14, "\x00\x00\x00\x00\x00\x00\x00\x80")).packet(1, 1, "b").b, want: errAbsurdTime.Error()},
		"more interfaces than we can": {in: bytes.Join([][]byte{good().b, bytes.Repeat(newNg(le.order).iface(1).b, maxInterfaces)}, nil), want: "the section has more than 4096 interfaces"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := readAll(bytes.NewReader(tt.in))
			var damage *damageError
			if !errors.As(err, &damage) || damage.err.Error() != tt.want {
				t.Errorf("error %v, want %s", err, tt.want)
			}
			if damage != nil && (damage.start < start || damage.record < 4) {
				t.Errorf("damage in record %d at byte %d, want it after the third, from byte %d on", damage.record, damage.start, start)
			}
			if len(got) != 1 || string(got[0].frame) != "a" {
				t.Errorf("%d records before the damage, want the good one", len(got))
			}
		})
	}
}

// TestPcapngTimeKeepsNanoseconds goes through the whole range of a time stamp
// of nanoseconds.
func TestPcapngTimeKeepsNanoseconds(t *testing.T) {
	i := pcapngInterface{second: unitsInSecond(9)}
	for _, want := range []time.Time{
		time.Unix(0, 0), time.Unix(0, 999_999_999), time.Date(2026, 11, 22, 7, 44, 33, 659_000_123, time.UTC),
		time.Unix(0, 1<<63-1),
	} {
		if got, err := i.time(uint64(want.UnixNano())); err != nil || !got.Equal(want) || got.Location() != time.UTC {
			t.Errorf("%d: %v, %v, want %v in UTC", want.UnixNano(), got, err, want)
		}
	}
}
