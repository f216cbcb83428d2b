// SPDX-License-Identifier: GPL-2.0

//! The driver's callbacks as Linux 6.12, with our patches, has them.

use super::{chip, Mfrc522, OpenFile, Reader};
use kernel::{
    c_str,
    device::Core,
    miscdevice::{Attribute, MiscDevice, MiscDeviceRegistration},
    of,
    prelude::*,
    spi,
    sync::Arc,
    uaccess::{UserSliceReader, UserSliceWriter},
};

kernel::spi_device_table!(
    SPI_TABLE,
    MODULE_SPI_TABLE,
    (),
    [(spi::DeviceId::new(c_str!("mfrc522")), ())]
);

kernel::of_device_table!(
    OF_TABLE,
    MODULE_OF_TABLE,
    (),
    [
        (of::DeviceId::new(c_str!("nxp,mfrc522")), ()),
        (of::DeviceId::new(c_str!("mfrc522")), ()),
    ]
);

#[vtable]
impl spi::Driver for Mfrc522 {
    type IdInfo = ();

    const SPI_ID_TABLE: Option<spi::IdTable<()>> = Some(&SPI_TABLE);
    const OF_ID_TABLE: Option<of::IdTable<()>> = Some(&OF_TABLE);

    fn probe(spi: &spi::Device<Core>, _info: Option<&()>) -> Result<Pin<KBox<Self>>> {
        spi.setup(spi::Mode::Mode0, 8, chip::MAX_SPEED_HZ)?;
        let this = Self::new(spi, spi::Handle::new(spi)?)?;
        Ok(KBox::new(this, GFP_KERNEL)?.into())
    }
}

#[vtable]
impl MiscDevice for OpenFile {
    type Ptr = Pin<KBox<Self>>;
    type RegistrationData = Arc<Reader>;

    const MODULE: &'static ThisModule = &crate::THIS_MODULE;
    const ATTRIBUTES: &'static [Attribute<Self>] = Self::STATISTICS;

    fn open(misc: &MiscDeviceRegistration<Self>) -> Result<Self::Ptr> {
        KBox::pin_init(Self::new(misc.data().clone()), GFP_KERNEL)
    }

    fn read(this: Pin<&Self>, out: &mut UserSliceWriter) -> Result<usize> {
        this.read_answer(|rest| {
            let count = rest.len().min(out.len());
            out.write_slice(rest.get(..count).ok_or(EINVAL)?)?;
            Ok(count)
        })
    }

    fn write(this: Pin<&Self>, data: &mut UserSliceReader) -> Result<usize> {
        this.write_command(data.len(), |text| data.read_slice(text))
    }
}
