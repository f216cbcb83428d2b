// SPDX-License-Identifier: GPL-2.0

//! The driver's callbacks as Linux 7.3, with our patches, has them.

use super::{chip, Mfrc522, OpenFile, Reader};
use kernel::{
    device::Core,
    fs::{File, Kiocb},
    iov::{IovIterDest, IovIterSource},
    miscdevice::{Attribute, MiscDevice, MiscDeviceRegistration},
    of,
    prelude::*,
    spi,
    sync::Arc,
};

kernel::spi_device_table!(SPI_TABLE, (), [(spi::DeviceId::new(c"mfrc522"), ())]);

kernel::of_device_table!(
    OF_TABLE,
    (),
    [
        (of::DeviceId::new(c"nxp,mfrc522"), ()),
        (of::DeviceId::new(c"mfrc522"), ()),
    ]
);

#[vtable]
impl spi::Driver for Mfrc522 {
    type IdInfo = ();
    type Data<'bound> = Self;

    const SPI_ID_TABLE: Option<spi::IdTable<()>> = Some(&SPI_TABLE);
    const OF_ID_TABLE: Option<of::IdTable<()>> = Some(&OF_TABLE);

    fn probe<'bound>(
        spi: &'bound spi::Device<Core<'_>>,
        _info: Option<&'bound ()>,
    ) -> impl PinInit<Self, Error> + 'bound {
        spi.setup(spi::Mode::Mode0, 8, chip::MAX_SPEED_HZ)?;
        Self::new(spi, spi::Handle::new(spi)?)
    }
}

#[vtable]
impl MiscDevice for OpenFile {
    type Ptr = Pin<KBox<Self>>;
    type RegistrationData = Arc<Reader>;

    const ATTRIBUTES: &'static [Attribute<Self>] = Self::STATISTICS;

    fn open(_file: &File, misc: &MiscDeviceRegistration<Self>) -> Result<Self::Ptr> {
        KBox::pin_init(Self::new(misc.data().clone()), GFP_KERNEL)
    }

    fn read_iter(kiocb: Kiocb<'_, Self::Ptr>, out: &mut IovIterDest<'_>) -> Result<usize> {
        kiocb.file().read_answer(|rest| {
            let wanted = rest.len().min(out.len());
            let count = out.copy_to_iter(rest);
            if count < wanted {
                return Err(EFAULT);
            }
            Ok(count)
        })
    }

    fn write_iter(kiocb: Kiocb<'_, Self::Ptr>, data: &mut IovIterSource<'_>) -> Result<usize> {
        kiocb.file().write_command(data.len(), |text| {
            if data.copy_from_iter(text) < text.len() {
                return Err(EFAULT);
            }
            Ok(())
        })
    }
}
