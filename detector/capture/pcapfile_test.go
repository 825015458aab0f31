package capture

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// byteOrder is what both byte orders of encoding/binary can do.
type byteOrder interface {
	binary.ByteOrder
	binary.AppendByteOrder
}

// writePcap returns records as a classic capture. All must be of one link type.
func writePcap(order byteOrder, magic uint32, link linkType, records ...record) []byte {
	b := order.AppendUint32(nil, magic)
	b = order.AppendUint16(b, 2)
	b = order.AppendUint16(b, 4)
	b = append(b, make([]byte, 8)...) // time zone and accuracy, which nobody fills in
	b = order.AppendUint32(b, 262144)
	b = order.AppendUint32(b, uint32(link))
	tick := 1000
	if magic == pcapNanoseconds {
		tick = 1
	}
	for _, rec := range records {
		b = order.AppendUint32(b, uint32(rec.at.Unix()))
		b = order.AppendUint32(b, uint32(rec.at.Nanosecond()/tick))
		b = order.AppendUint32(b, uint32(len(rec.frame)))
		b = order.AppendUint32(b, uint32(rec.length))
		b = append(b, rec.frame...)
	}
	return b
}

// readAll returns the records of a capture and the error that ended it.
func readAll(r io.Reader) ([]record, error) {
	f, err := openCapture(r)
	if err != nil {
		return nil, err
	}
	var records []record
	for {
		var rec record
		err := f.next(&rec)
		if errors.Is(err, io.EOF) {
			return records, nil
		}
		if err != nil {
			return records, err
		}
		rec.frame = bytes.Clone(rec.frame)
		records = append(records, rec)
	}
}

func sampleRecords() []record {
	at := time.Date(2026, 2, 28, 23, 59, 59, 123456000, time.UTC)
	return []record{
		{at: at, link: linkEthernet, frame: []byte("a frame"), length: 7},
		{at: at.Add(time.Second), link: linkEthernet, frame: []byte("one that was cut"), length: 1514},
		{at: at.Add(time.Minute), link: linkEthernet, frame: []byte{}, length: 60},
	}
}

func diffRecords(got, want []record) string {
	return cmp.Diff(want, got, cmp.AllowUnexported(record{}))
}

func TestReadPcap(t *testing.T) {
	tests := map[string]struct {
		order byteOrder
		magic uint32
		add   time.Duration // to the time of every record
	}{
		"little endian, microseconds": {order: binary.LittleEndian, magic: pcapMicroseconds},
		"big endian, microseconds":    {order: binary.BigEndian, magic: pcapMicroseconds},
		"little endian, nanoseconds":  {order: binary.LittleEndian, magic: pcapNanoseconds, add: 789},
		"big endian, nanoseconds":     {order: binary.BigEndian, magic: pcapNanoseconds, add: 789},
		"after January 2038":          {order: binary.LittleEndian, magic: pcapMicroseconds, add: 20 * 365 * 24 * time.Hour},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			want := sampleRecords()
			for i := range want {
				want[i].at = want[i].at.Add(tt.add)
			}
			file := writePcap(tt.order, tt.magic, linkEthernet, want...)
			got, err := readAll(iotest.OneByteReader(bytes.NewReader(file)))
			if err != nil {
				t.Fatalf("read: %v", err)
			}
			if diff := diffRecords(got, want); diff != "" {
				t.Errorf("records (-want +got):\n%s", diff)
			}
		})
	}
}

// TestReadPcapOddities shows what a strict reader would refuse but programs
// write.
func TestReadPcapOddities(t *testing.T) {
	want := sampleRecords()[:1]
	file := func(offset int, value uint32) []byte {
		b := writePcap(binary.LittleEndian, pcapMicroseconds, linkEthernet, want...)
		binary.LittleEndian.PutUint32(b[offset:], value)
		return b
	}
	tests := map[string][]byte{
		"snapshot length below the records'": file(16, 4),
		"with a frame check sequence":        file(20, 0x24000000|uint32(linkEthernet)),
		"length on the wire left empty":      file(24+12, 0),
	}
	for name, b := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := readAll(bytes.NewReader(b))
			if err != nil {
				t.Fatalf("read: %v", err)
			}
			if diff := diffRecords(got, want); diff != "" {
				t.Errorf("records (-want +got):\n%s", diff)
			}
		})
	}
}

func TestNoCapture(t *testing.T) {
	header := func(offset int, value ...byte) []byte {
		return patch(writePcap(binary.BigEndian, pcapMicroseconds, linkEthernet), offset, value...)
	}
	tests := map[string]struct {
		in   []byte
		want string
	}{
		"empty":                 {want: "the capture is empty"},
		"text":                  {in: []byte("TCP_PORTS=\"1,7\"\nUDP_PORTS=\"9\"\n"), want: "the file is neither pcap nor pcapng"},
		"short text":            {in: []byte("no\n"), want: "the file is neither pcap nor pcapng"},
		"header cut short":      {in: header(0, 0xa1)[:23], want: "the file is neither pcap nor pcapng"},
		"compressed":            {in: []byte{0x1f, 0x8b, 8, 0, 0, 0}, want: "the capture is compressed: pipe it through gzip -dc"},
		"another version":       {in: header(4, 0, 3), want: "pcap version 3.4 is not supported, only 2.4 is"},
		"unsupported link type": {in: header(20, 0, 0, 0, 105), want: unsupportedLinkType(105).Error()},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := readAll(bytes.NewReader(tt.in))
			if err == nil || err.Error() != tt.want {
				t.Errorf("error %q, want %q", err, tt.want)
			}
		})
	}
}

// TestDamage shows that everything before a damaged record is read, and how
// the error leads to it.
func TestDamage(t *testing.T) {
	whole := writePcap(binary.LittleEndian, pcapMicroseconds, linkEthernet, sampleRecords()...)
	const second = 24 + 16 + 7 // where the second record starts
	tests := map[string]struct {
		in      []byte
		records int // read before the damage
		want    string
	}{
		"cut within a record": {
			in: whole[:second+16+5], records: 1,
			want: "record 2 at byte 47: the file ends within it",
		},
		"cut within a record's header": {
			in: whole[:second+3], records: 1,
			want: "record 2 at byte 47: the file ends within it",
		},
		"absurd length": {
			in: patch(whole, second+8, 0xff, 0xff, 0xff, 0xff), records: 1,
			want: "record 2 at byte 47: its length of 4294967295 bytes is absurd; the longest read is 1048576",
		},
		"longest length but no data": {
			in: patch(whole, 24+8, 0, 0, 0x10, 0), records: 0,
			want: "record 1 at byte 24: the file ends within it",
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := readAll(bytes.NewReader(tt.in))
			var damage *damageError
			if !errors.As(err, &damage) || err.Error() != tt.want {
				t.Errorf("error %v, want %s", err, tt.want)
			}
			if len(got) != tt.records {
				t.Errorf("%d records before the damage, want %d", len(got), tt.records)
			}
		})
	}
}

// TestFailingDisk shows that a file that cannot be read is not called damaged.
func TestFailingDisk(t *testing.T) {
	broken := errors.New("input/output error")
	whole := writePcap(binary.LittleEndian, pcapMicroseconds, linkEthernet, sampleRecords()...)
	for _, n := range []int{0, 3, 20, 24, 30, 45, 50} {
		_, err := readAll(io.MultiReader(bytes.NewReader(whole[:n]), iotest.ErrReader(broken)))
		var damage *damageError
		if !errors.Is(err, broken) || errors.As(err, &damage) || !strings.HasPrefix(err.Error(), "read the capture: ") {
			t.Errorf("after %d bytes: error %v, want %v", n, err, broken)
		}
	}
}
