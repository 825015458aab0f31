package capture

import (
	"encoding/binary"
	"fmt"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A ring is the memory that a packet socket shares with the kernel: blocks
// that the kernel fills with frames and hands over whole, one after the other
// (TPACKET_V3). Waking the reader once per block, not per packet, is what makes
// it fast. It serves one reader.
type ring struct {
	memory   []byte
	current  int // offset in memory of the block that comes next
	handOver time.Duration
}

// blockSize is that of one block. Blocks are small because the kernel hands
// over a block at each time-out however little is in it: many of them let the
// reader stall for long before frames are lost. But the largest packet must
// fit, or its checksum could not be verified; the few bytes that 64 KiB lack
// for that do not matter.
const blockSize = 64 << 10

// frameSize only has to be plausible: in this version of the ring frames take
// as much of a block as they need.
const frameSize = 2048

// openRing sets up a ring of so many bytes, rounded up to whole blocks. A
// block with something in it is handed over after handOver.
func openRing(fd, size int, handOver time.Duration) (*ring, error) {
	if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VERSION, unix.TPACKET_V3); err != nil {
		return nil, fmt.Errorf("ask for a version 3 ring: %w", err)
	}
	blocks := (size + blockSize - 1) / blockSize
	request := unix.TpacketReq3{
		Block_size:     blockSize,
		Block_nr:       uint32(blocks),
		Frame_size:     frameSize,
		Frame_nr:       uint32(blocks * (blockSize / frameSize)),
		Retire_blk_tov: uint32(max(handOver.Milliseconds(), 1)),
	}
	if err := unix.SetsockoptTpacketReq3(fd, unix.SOL_PACKET, unix.PACKET_RX_RING, &request); err != nil {
		return nil, fmt.Errorf("ask for a ring of %d blocks: %w", blocks, err)
	}
	memory, err := unix.Mmap(fd, 0, blocks*blockSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map the ring: %w", err)
	}
	return &ring{memory: memory, handOver: handOver}, nil
}

// jiffy is the kernel's clock tick at its longest.
const jiffy = 10 * time.Millisecond

// lastHandOver is how long it may be before the kernel has handed over even the
// block that it has open: its timer may count in ticks, and runs once more if
// it finds that block just begun.
func (r *ring) lastHandOver() time.Duration { return 2 * (r.handOver + jiffy) }

func (r *ring) close() error { return unix.Munmap(r.memory) }

// Offsets in struct tpacket_block_desc.
const (
	blockStatusAt = 8
	blockCountAt  = 12
	blockFirstAt  = 16
	blockHeader   = 48
)

// ready reports whether the kernel has handed over the current block.
func (r *ring) ready() bool {
	return atomic.LoadUint32(r.status())&unix.TP_STATUS_USER != 0
}

// block returns the current block. It is valid until release.
func (r *ring) block() []byte { return r.memory[r.current : r.current+blockSize] }

// release gives the current block back to the kernel and turns to the next.
func (r *ring) release() {
	atomic.StoreUint32(r.status(), unix.TP_STATUS_KERNEL)
	if r.current += blockSize; r.current == len(r.memory) {
		r.current = 0
	}
}

// status is what the kernel and we tell each other by; the atomic access
// orders the block's contents around it.
func (r *ring) status() *uint32 {
	return (*uint32)(unsafe.Pointer(&r.memory[r.current+blockStatusAt]))
}

// A frame is one packet in a block.
type frame struct {
	at        time.Time
	status    uint32
	etherType uint16
	kind      uint8  // whom it was addressed to: unix.PACKET_HOST and so on
	index     int    // of the interface
	data      []byte // from the network header; belongs to the block
	length    int    // on the wire, from the network header
}

// A blockReader gives the frames of a block one by one. The block is the
// kernel's work, but no offset in it is taken on trust: a fault there must not
// become one here.
type blockReader struct {
	block  []byte
	at     int // offset of the next frame
	left   int // frames to come
	broken bool
}

func readBlock(block []byte) blockReader {
	b := blockReader{block: block}
	if len(block) < blockHeader {
		b.broken = true
		return b
	}
	b.left = int(binary.NativeEndian.Uint32(block[blockCountAt:]))
	b.at = int(binary.NativeEndian.Uint32(block[blockFirstAt:]))
	return b
}

// Sizes and offsets in struct tpacket3_hdr and in the struct sockaddr_ll that
// follows it.
const (
	frameNextAt     = 0
	frameSecondsAt  = 4
	frameNanosAt    = 8
	frameCapturedAt = 12
	frameLengthAt   = 16
	frameStatusAt   = 20
	frameNetworkAt  = 26

	addressAt          = unix.SizeofTpacket3Hdr
	addressEtherTypeAt = addressAt + 2
	addressIndexAt     = addressAt + 4
	addressKindAt      = addressAt + 10
	frameHeader        = addressAt + unix.SizeofSockaddrLinklayer
)

// next fills in f and reports whether there was a frame. At its end, broken
// tells whether the block made no sense.
func (b *blockReader) next(f *frame) bool {
	if b.left <= 0 || b.broken {
		return false
	}
	if b.at < blockHeader || b.at > len(b.block)-frameHeader {
		b.broken = true
		return false
	}
	h := b.block[b.at:]
	start := int(binary.NativeEndian.Uint16(h[frameNetworkAt:]))
	captured := int(binary.NativeEndian.Uint32(h[frameCapturedAt:]))
	if start < frameHeader || start > len(h) || captured > len(h)-start {
		b.broken = true
		return false
	}
	f.at = time.Unix(int64(binary.NativeEndian.Uint32(h[frameSecondsAt:])), int64(binary.NativeEndian.Uint32(h[frameNanosAt:])))
	f.status = binary.NativeEndian.Uint32(h[frameStatusAt:])
	f.etherType = binary.BigEndian.Uint16(h[addressEtherTypeAt:])
	f.kind = h[addressKindAt]
	f.index = int(int32(binary.NativeEndian.Uint32(h[addressIndexAt:])))
	f.data = h[start : start+captured : start+captured]
	f.length = max(int(binary.NativeEndian.Uint32(h[frameLengthAt:])), captured)

	b.left--
	step := int(binary.NativeEndian.Uint32(h[frameNextAt:]))
	if step == 0 { // the last one
		b.broken = b.left > 0
		b.left = 0
	}
	b.at += step
	return true
}

// startsWith returns what the frame's data starts with. Since Linux 6.11 a
// packet behind several VLAN tags, of which the kernel has taken off one, is
// announced by its inner type or, behind many, by none, though its data start
// with the second tag.
func (f *frame) startsWith() uint16 {
	if f.status&unix.TP_STATUS_VLAN_VALID != 0 && startsWithTags(f.data) {
		return unix.ETH_P_8021Q
	}
	return f.etherType
}

// startsWithTags reports whether data is an IP packet behind VLAN tags, all of
// VLAN 0, which the kernel takes off, however many there are. No IP packet is
// taken for tags by mistake: read as IPv4 they are a header without length, and
// read as IPv6 one that announces a payload of 16 KiB at the least or leads to
// neither TCP nor UDP.
func startsWithTags(data []byte) bool {
	for len(data) > 4 && binary.BigEndian.Uint16(data)&vlanIDMask == 0 {
		switch binary.BigEndian.Uint16(data[2:]) {
		case unix.ETH_P_IP:
			return data[4]>>4 == 4
		case unix.ETH_P_IPV6:
			return data[4]>>4 == 6
		case unix.ETH_P_8021Q, unix.ETH_P_8021AD:
			data = data[4:]
		default:
			return false
		}
	}
	return false
}

// checksum says how far the kernel vouches for the transport checksum.
func (f *frame) checksum() checksumState {
	// Not ready: sent by this host or its guests, to be filled in by hardware
	// that the packet never reached. Valid: checked by the network card.
	if f.status&(unix.TP_STATUS_CSUMNOTREADY|unix.TP_STATUS_CSUM_VALID) != 0 {
		return checksumTrusted
	}
	return checksumVerify
}
